"""A server of Prometheus metrics and of probes over HTTP/1.1 with a single thread.

prometheus_client's server gives each connection a thread without a time limit. Here a connection is
closed after one answer or a timeout, the size of a request is limited, and if there are too many
connections, the address with most of them loses its oldest.
"""

import asyncio
import contextlib
import http
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app

from servicekit.pace import Pace

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
REQUEST_SECONDS = 5.0
"""Maximum time for a request to arrive, s."""
ANSWER_SECONDS = 10.0
"""Maximum time for a client to read the answer, s."""
MAX_REQUEST_BYTES = 8192
_ACCEPTED_AT_A_TIME = 32
"""Connections accepted at once: fewer than may be open, so that a new one is read before others
replace it."""
_BACKLOG = 1024
"""Connections that wait to be accepted; further clients retry after a second."""
_PER_SECOND, _BURST, _LONGEST_SECONDS = 10.0, 20, 5.0
"""Rate limit of pages for one address: each page costs some milliseconds of the interpreter."""
PROBE_SECONDS = 2.0
"""Maximum time for the process to say what is not ready, s."""
LIVE, READY = "/healthz", "/readyz"
"""Paths of the probes."""
_END = b"\r\n\r\n"

Probe = Callable[[], Awaitable[Sequence[str]]]
"""Coroutine function that returns what is not ready, for people; empty: everything is."""


async def _everything_ready() -> Sequence[str]:
    return ()


class MetricsServer:
    """Prometheus metrics at `/metrics` and probes at `/healthz` and `/readyz`, until closed.

    `/healthz` answers 200 while the process works, `/readyz` while everything is ready; else 503
    with a body that names what is not.

    Args:
        listen: host:port or [IPv6]:port; port 0: any free one, see `address`.
        registry: the metrics.
        probe: awaited, on the server's own event loop, for each request of a probe. If it takes
            longer than `PROBE_SECONDS`, the process does not work.

    Raises:
        OSError: the address cannot be bound.
        OverflowError: there is no such port.
    """

    def __init__(
        self, listen: str, registry: CollectorRegistry, probe: Probe = _everything_ready
    ) -> None:
        host, _, port = listen.rpartition(":")
        listening = _bind(host.strip("[]"), int(port))
        self.address = f"{host}:{listening.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        serving = _Connections(make_wsgi_app(registry), probe).serve(listening, self._end)
        self._thread = threading.Thread(
            target=self._run, args=[serving], daemon=True, name="metrics"
        )
        self._thread.start()

    def close(self) -> None:
        """End the server and free its port."""
        with contextlib.suppress(RuntimeError):  # closed before
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self, serving: Coroutine[None, None, None]) -> None:
        try:
            self._loop.run_until_complete(serving)
        finally:
            self._loop.close()


class _Connections:
    """The open connections, of one event loop."""

    def __init__(self, app: Callable[..., Any], probe: Probe) -> None:
        self._app = app
        self._probe = probe
        self._pace = Pace(_PER_SECOND, _BURST, _LONGEST_SECONDS)
        self._open: dict[asyncio.Task[None], str] = {}
        """The address of each, the oldest first."""
        self._requested: set[asyncio.Task[None]] = set()
        """Connections whose request has arrived."""

    async def serve(self, listening: socket.socket, end: asyncio.Event) -> None:
        """Answer until the end."""
        server = await asyncio.start_server(
            self._connected, sock=listening, limit=MAX_REQUEST_BYTES, backlog=_ACCEPTED_AT_A_TIME
        )
        listening.listen(_BACKLOG)
        await end.wait()
        server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        peer = writer.get_extra_info("peername")
        if task is None or not peer:  # it is closed already
            writer.transport.abort()
            return
        self._open[task] = str(peer[0])
        self._close_one_too_many()
        try:
            await self._answer(task, reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass
        except Exception:
            logger.exception("metrics cannot be served")
        finally:
            writer.transport.abort()
            del self._open[task]
            self._requested.discard(task)

    def _close_one_too_many(self) -> None:
        if len(self._open) > MAX_CONNECTIONS:
            task = to_close(self._open, self._requested)
            self._open[task] = self._open.pop(task)  # it is cancelled, and ends soon
            task.cancel()

    async def _answer(
        self,
        task: asyncio.Task[None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        async with asyncio.timeout(REQUEST_SECONDS):
            try:
                request = await reader.readuntil(_END)
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                request = b""
        self._requested.add(task)
        await asyncio.sleep(self._pace.delay(self._open[task], time.monotonic()))
        path = (parse(request) or {}).get("PATH_INFO")
        if path in (LIVE, READY):
            writer.write(await probed(self._probe, path))
        else:
            writer.write(response(self._app, request))
        async with asyncio.timeout(ANSWER_SECONDS):
            await writer.drain()
            writer.close()
            await writer.wait_closed()


def to_close(
    connections: "dict[asyncio.Task[None], str]", requested: "set[asyncio.Task[None]]"
) -> "asyncio.Task[None]":
    """Return the connection to close for a new one.

    It is the oldest of the address with most connections, preferably one without a request.

    Args:
        connections: the address of each, the oldest first; not empty.
        requested: those whose request has arrived.
    """
    ((busiest, _),) = Counter(connections.values()).most_common(1)
    of_busiest = [task for task, address in connections.items() if address == busiest]
    return next((task for task in of_busiest if task not in requested), of_busiest[0])


def response(app: Callable[..., Any], request: bytes) -> bytes:
    """Return the complete answer to a request.

    Args:
        app: the WSGI application that answers it.
        request: request line and headers; malformed: 400.
    """
    environ = parse(request)
    if environ is None:
        return _encoded("400 Bad Request", [], b"the request must be HTTP/1 of at most 8 KiB\n")
    begun: list[tuple[str, list[tuple[str, str]]]] = []
    try:
        body = b"".join(app(environ, lambda status, headers: begun.append((status, headers))))
    except Exception:
        logger.exception("metrics cannot be collected")
        error = http.HTTPStatus.INTERNAL_SERVER_ERROR
        return _encoded(f"{error.value} {error.phrase}", [], b"see the log\n")
    return _encoded(*begun[0], body)


async def probed(probe: Probe, path: str) -> bytes:
    """Return the complete answer to the request of a probe.

    Args:
        probe: see `MetricsServer`.
        path: `/healthz` or `/readyz`.
    """
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            waiting = await probe()
    except TimeoutError:
        return _plain(503, f"the process did not answer within {PROBE_SECONDS:g} s")
    except Exception:
        logger.exception("the probe failed")
        return _plain(503, "the probe failed: see the log")
    if path == READY and waiting:
        return _plain(503, f"not ready: {', '.join(waiting)}")
    return _plain(200, "ready" if path == READY else "live")


def _plain(code: int, text: str) -> bytes:
    status = http.HTTPStatus(code)
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
    return _encoded(f"{status.value} {status.phrase}", headers, f"{text}\n".encode())


def parse(request: bytes) -> dict[str, str] | None:
    """Return the WSGI environment of a request; None: it is not HTTP/1."""
    line, *headers = request.decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    path, _, query = words[1].partition("?")
    environ = {"REQUEST_METHOD": words[0], "PATH_INFO": path, "QUERY_STRING": query}
    for header in headers:
        name, colon, value = header.partition(":")
        if colon:
            environ[f"HTTP_{name.strip().upper().replace('-', '_')}"] = value.strip()
    return environ


def _encoded(status: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    every = [*headers, ("Content-Length", str(len(body))), ("Connection", "close")]
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in every)]
    return "\r\n".join(lines).encode("latin-1") + _END + body


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raise OSError, or OverflowError for an invalid port."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = addresses[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(
            (address[0], port, *address[2:])
        )  # getaddrinfo cuts a port that is too large
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    listening.setblocking(False)
    return listening
