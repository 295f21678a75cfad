"""A TCP relay in front of a service, which stands for a slow, cut or silent network."""

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
    """The behaviour of a network towards connections and data."""

    delay: float = 0.0
    """Seconds of delay for each piece of at most 64 KiB."""
    jitter: float = 0.0
    """Maximum of the random delay on top, in seconds."""
    bytes_per_second: float = math.inf
    """Limit for each direction of each connection."""
    is_cut: bool = False
    """Open connections are reset, and so are new ones."""
    is_silent: bool = False
    """New connections are accepted, and all data is dropped. Open connections stay silent for good,
    as behind a router that has lost its state."""
    ends_requests: bool = False
    """The direction to the service is half-closed; the direction back is open."""
    ends_answers: bool = False
    """The direction back is half-closed; the direction to the service is open."""


SOUND = Network()
CUT = Network(is_cut=True)
SILENT = Network(is_silent=True)


class Relay:
    """A relay between its own loopback port and a target, with the behaviour of a `Network`.

    Use it as a context manager.

    Args:
        target: address to forward bytes to, host:port or unix:path.
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
        """Change the network's behaviour, for open connections too."""
        self._call(self._become(network))

    @contextmanager
    def being(self, network: Network) -> Iterator[None]:
        """Change the network's behaviour within the block, and restore a sound one."""
        self.become(network)
        try:
            yield
        finally:
            self.become(SOUND)

    def retarget(self, target: str) -> None:
        """Forward new connections to another target, where a restarted service listens."""
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
        except OSError:  # reset by this relay or by either end: the other direction ends too
            _reset(way.writer)


class _Way:
    """One direction of a connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, leads_to_service: bool
    ) -> None:
        self.reader = reader
        self.writer = writer
        self._leads_to_service = leads_to_service
        self._drops = False

    def meet(self, network: Network) -> None:
        """Apply the network's behaviour to this direction."""
        if network.is_cut:
            _reset(self.writer)
        if network.is_silent:
            self._drops = True
        if network.ends_requests if self._leads_to_service else network.ends_answers:
            self.end()
            self._drops = True

    async def send(self, data: bytes) -> None:
        """Forward a piece, or drop it."""
        if not self._drops:
            self.writer.write(data)
            await self.writer.drain()

    def end(self) -> None:
        """Half-close this direction."""
        if not self._drops:
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
    """Return the number of bytes to forward at once."""
    return int(max(1, min(_CHUNK, network.bytes_per_second / 20)))


def _seconds(network: Network, size: int) -> float:
    """Return the delay of a piece in seconds."""
    by_chance = random.uniform(0.0, network.jitter)
    return network.delay + by_chance + size / network.bytes_per_second
