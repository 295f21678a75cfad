"""A raw HTTP/2 client that looks like any gRPC client until it misbehaves.

It obeys flow control, because the server ends the connection of a client that does not, and
nothing else: the caller decides what is sent, and when.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Self

from bench.isolation import frames
from bench.isolation.frames import Http2Frame, Kind, Setting

_READ_BYTES = 1 << 16
_FRAME_BYTES = 16_384
"""Size of the largest frame that every peer accepts."""


class ConnectionEndedError(Exception):
    """The server ended the connection; the message has the reason."""


class Stream:
    """A call, from its headers to its end."""

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.window = window
        """Bytes that may still be sent (flow-control window)."""
        self.sent = 0
        """Received bytes of DATA."""
        self.reset_code: int | None = None
        """Error code of the server's RST_STREAM; None if there was none."""
        self.trailers: dict[str, str] = {}
        self._ended = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Return True if the server has ended the stream."""
        return self._ended.is_set()

    @property
    def status(self) -> str | None:
        """Return the `grpc-status`; None if the stream has not ended, or has ended without one."""
        return self.trailers.get("grpc-status")

    async def wait(self) -> Self:
        """Wait until the server has ended the stream."""
        await self._ended.wait()
        return self

    def end(self) -> None:
        """Mark the stream as ended by the server."""
        self._ended.set()


class Connection:
    """A connection to a server; made by `connect`.

    Args:
        reader: stream of bytes from the server.
        writer: stream of bytes to the server.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.streams: dict[int, Stream] = {}
        """Streams that have not ended, by number."""
        self.ended_streams = 0
        """Number of streams that the server has ended."""
        self.peer_settings: dict[int, int] = {}
        self.goaway: int | None = None
        """Error code of the server's GOAWAY; None if there was none."""
        self.window = frames.DEFAULT_WINDOW
        self._reader = reader
        self._writer = writer
        self._next = 1
        self._moved = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()

    async def begin(self) -> None:
        """Send preface and settings, and wait for the server's settings."""
        mine = {
            Setting.HEADER_TABLE_SIZE: 0,  # no dynamic table: every block can be read by itself
            Setting.INITIAL_WINDOW_SIZE: frames.LARGEST_WINDOW,
        }
        self._writer.write(frames.PREFACE + frames.settings(mine))
        widened = frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW
        self._writer.write(frames.window_update(0, widened))
        self._reading = asyncio.create_task(self._read())
        settling = asyncio.create_task(self._settled.wait())
        await asyncio.wait({self._reading, settling}, return_when=asyncio.FIRST_COMPLETED)
        settling.cancel()
        self._check()

    @property
    def closed(self) -> bool:
        """Return True if the server has ended the connection."""
        return self._reading is None or self._reading.done()

    @property
    def begun(self) -> int:
        """Return the number of streams that were begun."""
        return (self._next - 1) // 2

    def number(self) -> int:
        """Return the number of the next stream."""
        number, self._next = self._next, self._next + 2
        return number

    def open(self, block: bytes, *, end: bool = False) -> Stream:
        """Begin a stream with its headers; with `end`, no message follows.

        Raises:
            ConnectionEndedError: the connection has ended.
        """
        self._check()
        initial = self.peer_settings.get(Setting.INITIAL_WINDOW_SIZE, frames.DEFAULT_WINDOW)
        stream = Stream(self.number(), initial)
        self.streams[stream.number] = stream
        self.write(frames.headers(stream.number, block, end=end))
        return stream

    async def send(self, stream: Stream, payload: bytes, *, end: bool = False) -> None:
        """Send all bytes as the server's windows permit; stop if the stream has ended.

        Raises:
            ConnectionEndedError: the connection has ended.
        """
        remaining = memoryview(payload)
        while remaining and not stream.ended:
            size = min(len(remaining), stream.window, self.window, _FRAME_BYTES)
            if size <= 0:
                await self._wait_for_window(stream)
                continue
            last = end and size == len(remaining)
            self._sent(stream, size)
            self.write(frames.data(stream.number, bytes(remaining[:size]), end=last))
            remaining = remaining[size:]
            await self.drain()

    def reset(self, stream: Stream) -> None:
        """Reset a stream from this side."""
        self.streams.pop(stream.number, None)
        stream.end()
        self.write(frames.reset(stream.number))

    def write(self, encoded: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(encoded)

    async def drain(self) -> None:
        """Wait until the write buffer has drained.

        Raises:
            ConnectionEndedError: the connection has ended.
        """
        self._check()
        try:
            await self._writer.drain()
        except OSError as error:
            raise ConnectionEndedError(str(error)) from error

    async def close(self) -> None:
        """End the connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _check(self) -> None:
        if self.closed:
            raise ConnectionEndedError(f"the server ended the connection, GOAWAY {self.goaway}")

    def _sent(self, stream: Stream, size: int) -> None:
        stream.window -= size
        stream.sent += size
        self.window -= size

    async def _wait_for_window(self, stream: Stream) -> None:
        self._check()
        self._moved.clear()
        ending = asyncio.create_task(stream.wait())
        moving = asyncio.create_task(self._moved.wait())
        try:
            await asyncio.wait({ending, moving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            moving.cancel()

    async def _read(self) -> None:
        rest = b""
        try:
            while received := await self._reader.read(_READ_BYTES):
                parsed, rest = frames.parse(rest + received)
                for frame in parsed:
                    self._take(frame)
        except OSError:
            pass
        finally:
            for stream in self.streams.values():
                stream.end()
            self._moved.set()

    def _take(self, frame: Http2Frame) -> None:
        match frame.kind:
            case Kind.SETTINGS if not frame.flags & frames.ACK:
                self._take_settings(frames.settings_of(frame.payload))
            case Kind.PING if not frame.flags & frames.ACK:
                self.write(bytes(Http2Frame(Kind.PING, frames.ACK, 0, frame.payload)))
            case Kind.WINDOW_UPDATE:
                self._widen(frame.stream, int.from_bytes(frame.payload, "big"))
            case Kind.GOAWAY:
                self.goaway = int.from_bytes(frame.payload[4:8], "big")
            case Kind.HEADERS | Kind.DATA | Kind.RST_STREAM:
                self._take_end(frame)

    def _take_settings(self, values: dict[int, int]) -> None:
        before = self.peer_settings.get(Setting.INITIAL_WINDOW_SIZE, frames.DEFAULT_WINDOW)
        self.peer_settings |= values
        after = self.peer_settings.get(Setting.INITIAL_WINDOW_SIZE, frames.DEFAULT_WINDOW)
        for stream in self.streams.values():
            stream.window += after - before
        self.write(bytes(Http2Frame(Kind.SETTINGS, frames.ACK, 0, b"")))
        self._settled.set()
        self._moved.set()

    def _widen(self, number: int, size: int) -> None:
        if not number:
            self.window += size
        elif stream := self.streams.get(number):
            stream.window += size
        self._moved.set()

    def _take_end(self, frame: Http2Frame) -> None:
        is_reset = frame.kind == Kind.RST_STREAM
        if not is_reset and not frame.flags & frames.END_STREAM:
            return
        self.ended_streams += 1
        stream = self.streams.pop(frame.stream, None)
        if stream is None:
            return
        if is_reset:
            stream.reset_code = int.from_bytes(frame.payload, "big")
        elif frame.kind == Kind.HEADERS:
            stream.trailers = frames.fields(frame.payload)
        stream.end()


@contextlib.asynccontextmanager
async def connect(address: str) -> AsyncIterator[Connection]:
    """Connect to a server, host:port, without TLS.

    Raises:
        ConnectionEndedError: the server ended the connection at once.
        OSError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    connection = Connection(reader, writer)
    try:
        await connection.begin()
        yield connection
    finally:
        await connection.close()


def bearer(key: str) -> Sequence[tuple[str, str]]:
    """Return the metadata of a call with this API key or token."""
    return [("authorization", f"Bearer {key}")]
