"""A TCP relay in front of a service: the network that can be made slow, cut, or go silent."""

import asyncio
import math
import random
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

_CHUNK = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Network:
    """What a network does with connections and with what passes."""

    delay: float = 0.0
    """Seconds that each piece of at most 64 KiB takes."""
    jitter: float = 0.0
    """Seconds that it may take on top, by chance."""
    bytes_per_second: float = math.inf
    """In each direction of each connection."""
    is_cut: bool = False
    """Open connections are reset, and so are new ones."""
    is_silent: bool = False
    """New connections are taken, and everything is swallowed. What is open stays silent for good,
    as behind a router that has forgotten it."""
    ends_requests: bool = False
    """The way to the service is at its end (half-closed); the way back is open."""
    ends_answers: bool = False
    """The way back is at its end; the way to the service is open."""


SOUND = Network()
CUT = Network(is_cut=True)
SILENT = Network(is_silent=True)


class Relay:
    """Passes bytes between a loopback port of its own and a target, as its network lets it.

    Use it as a context manager.

    Args:
        target: where to pass bytes on to, as host:port or unix:path.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._network = SOUND
        self._open: set[_Way] = set()
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

    def become(self, network: Network) -> None:
        """Go on as another network, with the connections that are open, too."""
        self._call(self._become(network))

    @contextmanager
    def being(self, network: Network) -> Iterator[None]:
        """Is another network for a while, then a sound one."""
        self.become(network)
        try:
            yield
        finally:
            self.become(SOUND)

    def retarget(self, target: str) -> None:
        """Pass new connections on to another target, where a service came back."""
        self._target = target

    def _call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _become(self, network: Network) -> None:
        self._network = network
        for way in list(self._open):
            way.meet(network)

    async def _stop(self) -> None:
        self._server.close()
        await self._become(CUT)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await _connect(self._target)
        except OSError:
            _reset(writer)
            return
        there = _Way(reader, upstream_writer, leads_to_service=True)
        back = _Way(upstream_reader, writer, leads_to_service=False)
        self._open |= {there, back}
        await asyncio.gather(self._pass(there), self._pass(back))
        self._open -= {there, back}
        for end in (writer, upstream_writer):
            end.close()

    async def _pass(self, way: "_Way") -> None:
        way.meet(self._network)
        try:
            while data := await way.reader.read(_piece(self._network)):
                await asyncio.sleep(_seconds(self._network, len(data)))
                await way.send(data)
            way.end()
        except OSError:  # reset by us or by either end: the other direction ends with it
            _reset(way.writer)


class _Way:
    """One direction of a connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, leads_to_service: bool
    ) -> None:
        self.reader = reader
        self.writer = writer
        self._leads_to_service = leads_to_service
        self._swallows = False

    def meet(self, network: Network) -> None:
        """Take note of what the network does from now on."""
        if network.is_cut:
            _reset(self.writer)
        if network.is_silent:
            self._swallows = True
        if network.ends_requests if self._leads_to_service else network.ends_answers:
            self.end()
            self._swallows = True

    async def send(self, data: bytes) -> None:
        """Pass a piece on, or swallows it."""
        if not self._swallows:
            self.writer.write(data)
            await self.writer.drain()

    def end(self) -> None:
        """Say that nothing more will come this way."""
        if not self._swallows:
            with suppress(OSError):
                self.writer.write_eof()


async def _connect(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.startswith("unix:"):
        return await asyncio.open_unix_connection(target.removeprefix("unix:"))
    host, _, port = target.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection.family != socket.AF_UNIX and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


def _piece(network: Network) -> int:
    """Return how many bytes to pass on at once."""
    return int(max(1, min(_CHUNK, network.bytes_per_second / 20)))


def _seconds(network: Network, size: int) -> float:
    """Return how long a piece takes."""
    by_chance = random.uniform(0.0, network.jitter)
    return network.delay + by_chance + size / network.bytes_per_second
