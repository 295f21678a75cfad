"""Serves Prometheus metrics over HTTP/1.1: one thread, whoever connects and however slowly.

Not prometheus_client's server, which gives each connection a thread for as long as it likes. A
connection here is closed after its one answer, or when it takes too long; its request is bounded in
bytes; and beyond a number of connections the busiest address loses its oldest.
"""

import asyncio
import contextlib
import http
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app

from servicekit.pace import Pace

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 64
REQUEST_SECONDS = 5.0
"""How long a request may take to come."""
ANSWER_SECONDS = 10.0
"""How long a client may take to read the answer."""
MOST_REQUEST_BYTES = 8192
_TAKEN_AT_A_TIME = 32
"""Connections: fewer than may be open, so that a new one is read before others make it leave."""
_BACKLOG = 1024
"""Connections that wait to be taken; beyond it a client tries again after a second."""
_PER_SECOND, _BURST, _LONGEST_SECONDS = 10.0, 20, 5.0
"""Pages for one address: each costs the process some milliseconds of its interpreter."""
_END = b"\r\n\r\n"


class MetricsServer:
    """Prometheus metrics over HTTP, until closed.

    Args:
        listen: host:port or [IPv6]:port; port 0: any free one, see `address`.
        registry: what is served.

    Raises:
        OSError: the address cannot be bound.
        OverflowError: there is no such port.
    """

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        host, _, port = listen.rpartition(":")
        listening = _bind(host.strip("[]"), int(port))
        self.address = f"{host}:{listening.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        serving = _Connections(make_wsgi_app(registry)).serve(listening, self._end)
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
    """Everybody who is connected; belongs to one event loop."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app
        self._pace = Pace(_PER_SECOND, _BURST, _LONGEST_SECONDS)
        self._open: dict[asyncio.Task[None], str] = {}
        """The address of each, the oldest first."""
        self._asked: set[asyncio.Task[None]] = set()
        """Those whose request has come."""

    async def serve(self, listening: socket.socket, end: asyncio.Event) -> None:
        """Answer until the end."""
        server = await asyncio.start_server(
            self._connected, sock=listening, limit=MOST_REQUEST_BYTES, backlog=_TAKEN_AT_A_TIME
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
        if task is None or not peer:  # it has gone again
            writer.transport.abort()
            return
        self._open[task] = str(peer[0])
        self._make_room()
        try:
            await self._answer(task, reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass
        except Exception:
            logger.exception("metrics cannot be served")
        finally:
            writer.transport.abort()
            del self._open[task]
            self._asked.discard(task)

    def _make_room(self) -> None:
        if len(self._open) > MOST_CONNECTIONS:
            leaving = to_leave(self._open, self._asked)
            self._open[leaving] = self._open.pop(leaving)  # it has been told, and leaves soon
            leaving.cancel()

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
        self._asked.add(task)
        await asyncio.sleep(self._pace.delay(self._open[task], time.monotonic()))
        writer.write(response(self._app, request))
        async with asyncio.timeout(ANSWER_SECONDS):
            await writer.drain()
            writer.close()
            await writer.wait_closed()


def to_leave(
    connections: "dict[asyncio.Task[None], str]", asked: "set[asyncio.Task[None]]"
) -> "asyncio.Task[None]":
    """Return which connection is closed for a new one.

    The oldest of the address that has most, and of these one whose request has not come.

    Args:
        connections: the address of each, the oldest first; not empty.
        asked: those whose request has come.
    """
    ((busiest, _),) = Counter(connections.values()).most_common(1)
    of_busiest = [task for task, address in connections.items() if address == busiest]
    return next((task for task in of_busiest if task not in asked), of_busiest[0])


def response(app: Callable[..., Any], request: bytes) -> bytes:
    """Return the whole answer to a request.

    Args:
        app: answers it, by WSGI.
        request: its line and its headers; without them: 400.
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
        return _encoded(f"{error.value} {error.phrase}", [], b"the log says why\n")
    return _encoded(*begun[0], body)


def parse(request: bytes) -> dict[str, str] | None:
    """Return what WSGI wants to know of a request's line and headers; None: it is not HTTP/1."""
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
    """Return a socket that listens; raises OSError, or OverflowError: no such port."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, place = found[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((place[0], port, *place[2:]))  # getaddrinfo cuts a port that is too large
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    listening.setblocking(False)
    return listening
