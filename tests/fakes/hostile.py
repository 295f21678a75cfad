"""A raw client whose calls send nothing, or most of one message, and stop."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence

from bench.isolation import frames
from bench.isolation.raw import Connection, ConnectionEndedError, Stream


class Hostile:
    """Raw connections to one server; each call of `begin` begins a stream."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._connections: list[Connection] = []
        self._sending: list[asyncio.Task[None]] = []

    def begin(
        self,
        method: str,
        count: int,
        payload: bytes = b"",
        *,
        metadata: Sequence[tuple[str, str]] = (),
        connections: int = 1,
    ) -> list[Stream]:
        """Begin calls of a method on new connections; each call sends these bytes and stops."""
        beginning = self._begin(method, count, payload, metadata, connections)
        return asyncio.run_coroutine_threadsafe(beginning, self._loop).result(30)

    def reset(self, streams: Sequence[Stream]) -> None:
        """Reset those of the streams that have not ended."""
        asyncio.run_coroutine_threadsafe(self._reset(streams), self._loop).result(30)

    def settings(self) -> dict[int, int]:
        """Return the HTTP/2 settings that the server has sent on the first connection."""
        return self._connections[0].peer_settings

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    def close(self) -> None:
        """End all connections and the loop."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _begin(
        self,
        method: str,
        count: int,
        payload: bytes,
        metadata: Sequence[tuple[str, str]],
        connections: int,
    ) -> list[Stream]:
        block, opened = frames.block(method, metadata), list[Connection]()
        for _ in range(connections):
            opened.append(await self._connect())
        streams = []
        for number in range(count):
            connection = opened[number % connections]
            stream = connection.open(block)
            streams.append(stream)
            self._sending.append(asyncio.ensure_future(_send(connection, stream, payload)))
        return streams

    async def _reset(self, streams: Sequence[Stream]) -> None:
        for connection in self._connections:
            for stream in streams:
                if connection.streams.get(stream.number) is stream:
                    connection.reset(stream)

    async def _connect(self) -> Connection:
        host, _, port = self._address.rpartition(":")
        connection = Connection(*await asyncio.open_connection(host, int(port)))
        self._connections.append(connection)
        await connection.begin()
        return connection

    async def _close(self) -> None:
        for sending in self._sending:
            sending.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        for connection in self._connections:
            await connection.close()


async def _send(connection: Connection, stream: Stream, payload: bytes) -> None:
    with contextlib.suppress(ConnectionEndedError):
        await connection.send(stream, payload)


@contextlib.contextmanager
def hostile(address: str) -> Iterator[Hostile]:
    """Yield a client of the server at this address, without TLS."""
    client = Hostile(address)
    client.start()
    try:
        yield client
    finally:
        client.close()


def most_of(size: int, share: float = 0.9) -> bytes:
    """Return the beginning of a message of this size, bytes."""
    return frames.message_head(size) + bytes(int(size * share))
