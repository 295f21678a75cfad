"""A TCP relay in front of a service: the network that the demo can cut."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

_CHUNK = 64 * 1024
_T = TypeVar("_T")


class Relay:
    """Passes bytes between a loopback port of its own and a target, until it is cut.

    While it is cut, open connections are reset and new ones are closed as soon as they are made.
    Use it as a context manager.

    Args:
        target: where to pass bytes on to, as host:port.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._connected = True
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Resets every connection, and from now on lets no new one through."""
        self._connected = False
        self._loop.call_soon_threadsafe(self._reset_all)

    def restore(self) -> None:
        """Lets connections through again."""
        self._connected = True

    def retarget(self, target: str) -> None:
        """Passes new connections on to another host:port, where a service came back."""
        self._target = target

    def _call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _reset_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _stop(self) -> None:
        self._server.close()
        self._reset_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        with suppress(OSError):
            if self._connected:
                upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
                await asyncio.gather(
                    self._pass(reader, upstream_writer), self._pass(upstream_reader, writer)
                )
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while data := await reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
        except OSError:  # reset by us or by either end: the other direction ends with it
            pass
        finally:
            self._open.discard(writer)
            writer.close()
