"""The handler of WatchPredictions, by which callers follow the log.

A stream reads in steps. A step counts what was committed since the step before, and sends the
newest of it. Commits wake the streams; nothing is polled but for a heartbeat.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from sightline.ingest.v1 import ingest_pb2, reads_pb2

from ingest_service.read.paging import decode_token, encode_token
from ingest_service.read.queries import Queries
from ingest_service.read.visible import visible
from ingest_service.receive.group_commit import draining_error
from ingest_service.store.protocol import Filter, News, Position, PredictionStore, Reader
from ingest_service.translate import filter_from_proto, stored_to_proto
from servicekit.auth.caller import Scope, current_caller
from servicekit.errors import SightlineError, invalid

_Context = grpc.aio.ServicerContext[Any, Any]

MAX_PER_SECOND = 1000
DEFAULT_PER_SECOND = 50
HEARTBEAT_SECONDS = 5.0
"""Time after which a message is sent in any case, s; the contract promises 10 s."""
PAUSE_SECONDS = 0.5
"""Minimum time between two steps of a stream, s: a step costs the same for one commit and many."""
CHECK_SECONDS = 60.0
"""Time between two steps after which retention may have come between them, s."""
_PORTION = 100
"""Maximum number of rows that are read at once: rows with many masks are large."""
_FRAME_BYTES = 8

_Row = tuple[Position, ingest_pb2.StoredPrediction]


@dataclass(slots=True)
class _WatchCursor:
    """The state of a stream: its position, and how many predictions it may send now."""

    position: Position
    per_second: int
    checked_at: float
    """Time when nothing after the position was deleted, s."""
    allowance: float
    filled_at: float

    def fill(self, now: float) -> int:
        """Return how many predictions may be sent now; a pause of a second allows all of them."""
        more = (now - self.filled_at) * self.per_second
        self.allowance = min(self.allowance + more, float(self.per_second))
        self.filled_at = now
        return int(self.allowance)


class Watches:
    """The handler of WatchPredictions. Used from one event loop, except for `committed`.

    Args:
        store: the store to read.
        at_once: streams that are open at the same time, >= 1; more are refused.
        message_bytes: maximum size of a message with more than one prediction, bytes.
    """

    ACCESS: Mapping[str, Scope] = {"WatchPredictions": Scope.READ}
    """Required scopes by method."""
    UNLIMITED: Sequence[str] = ("WatchPredictions",)
    """Methods whose calls get no default deadline."""

    def __init__(self, store: PredictionStore, *, at_once: int, message_bytes: int) -> None:
        # One thread: streams that are woken by the same commit read one after another.
        self._queries = Queries(store, threads=1, queue=at_once)
        self._at_once = at_once
        self._message_bytes = message_bytes
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._news = asyncio.Event()
        self._draining = asyncio.Event()

    def handlers(self) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
        """Return the gRPC handlers by the method's short name."""
        return {
            "WatchPredictions": grpc.unary_stream_rpc_method_handler(
                self.watch_predictions,
                request_deserializer=reads_pb2.WatchPredictionsRequest.FromString,
                response_serializer=reads_pb2.WatchPredictionsResponse.SerializeToString,
            )
        }

    def committed(self) -> None:
        """Wake the streams, because something was committed. Safe from any thread."""
        if self._open:
            self._loop.call_soon_threadsafe(self._wake)

    def drain(self) -> None:
        """End every stream with UNAVAILABLE, and refuse new ones."""
        self._draining.set()
        self._wake()

    def close(self) -> None:
        """End the thread, when no stream is open."""
        self._queries.close()

    async def watch_predictions(
        self, request: reads_pb2.WatchPredictionsRequest, _context: _Context
    ) -> AsyncIterator[reads_pb2.WatchPredictionsResponse]:
        """Stream what is committed."""
        wanted = visible(filter_from_proto(request.filter), current_caller())
        per_second = _per_second(request.max_per_second)
        after = _after(request.resume_token, wanted)
        with self._counted():
            now = self._loop.time()
            # What was committed before is new to a stream that is resumed: retention counts.
            checked_at = now if after is None else -CHECK_SECONDS
            if after is None:
                after = await self._queries.run(lambda reader: reader.head())
            cursor = _WatchCursor(after, per_second, checked_at, per_second, now)
            # At once, so that the caller can resume from here.
            yield reads_pb2.WatchPredictionsResponse(resume_token=encode_token(after, wanted))
            async with contextlib.aclosing(self._follow(wanted, cursor)) as responses:
                async for response in responses:
                    yield response

    async def _follow(
        self, wanted: Filter, cursor: _WatchCursor
    ) -> AsyncGenerator[reads_pb2.WatchPredictionsResponse, None]:
        sent_at = self._loop.time()
        while not self._draining.is_set():
            woken, began = self._news, self._loop.time()
            news, rows = await self._queries.run(self._step(wanted, cursor, cursor.fill(began)))
            cursor.checked_at = began
            if news.matching or began - sent_at >= HEARTBEAT_SECONDS:
                async with contextlib.aclosing(self._messages(wanted, news, rows)) as messages:
                    async for message in messages:
                        yield message
                sent_at = self._loop.time()
            cursor.position = news.upto
            cursor.allowance -= len(news.newest)
            pause = max(PAUSE_SECONDS, (1 - cursor.allowance) / cursor.per_second)
            await _first(self._draining, began + pause)
            if not news.more:
                await _first(woken, sent_at + HEARTBEAT_SECONDS)
        raise draining_error()

    def _step(self, wanted: Filter, cursor: _WatchCursor, keep: int) -> "_WatchStep":
        late = self._loop.time() - cursor.checked_at >= CHECK_SECONDS
        return _WatchStep(wanted, cursor.position, keep, late)

    async def _messages(
        self, wanted: Filter, news: News, rows: Sequence[_Row]
    ) -> AsyncGenerator[reads_pb2.WatchPredictionsResponse, None]:
        """Yield the messages of a step, each of a limited size. `rows` are the oldest of its rows.

        The token of each is the position of its last row, so that a caller that is cut off between
        two of them misses nothing.
        """
        message = reads_pb2.WatchPredictionsResponse(left_out=news.matching - len(news.newest))
        used, at = 0, 0
        while at < len(news.newest):
            expected = news.newest[at : at + _PORTION]
            if at:
                rows = await self._queries.run(functools.partial(_rows_at, positions=expected))
            message.left_out += len(expected) - len(rows)  # deleted meanwhile
            for position, row in rows:
                size = row.ByteSize() + _FRAME_BYTES
                if message.predictions and used + size > self._message_bytes:
                    yield message
                    message, used = reads_pb2.WatchPredictionsResponse(), 0
                message.predictions.append(row)
                message.resume_token = encode_token(position, wanted)
                used += size
            at += len(expected)
        message.resume_token = encode_token(news.upto, wanted)
        yield message

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self._draining.is_set():
            raise draining_error()
        if self._open >= self._at_once:
            raise SightlineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_WATCHES",
                f"{self._at_once} callers follow the log already, which is the limit (max_watches)",
                retry_after=5.0,
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
        if self._draining.is_set():
            self._news.set()


@dataclass(frozen=True, slots=True)
class _WatchStep:
    """Reads what was committed after a position, with the oldest rows to send."""

    wanted: Filter
    after: Position
    keep: int
    check: bool
    """True if retention may have deleted what comes after the position."""

    def __call__(self, reader: Reader) -> tuple[News, Sequence[_Row]]:
        if self.check and reader.is_deleted_after(self.after):
            raise SightlineError(
                grpc.StatusCode.OUT_OF_RANGE,
                "RESUME_TOKEN_EXPIRED",
                "resume_token is older than what is kept: predictions after it were deleted by"
                " retention (retain_days). Begin without a token, and read the rest by"
                " ListPredictions",
            )
        news = reader.news(self.wanted, self.after, self.keep)
        return news, _rows_at(reader, news.newest)


def _rows_at(reader: Reader, positions: Sequence[Position]) -> Sequence[_Row]:
    """Return the first rows of those at these positions."""
    rows = reader.at(positions[:_PORTION]) if positions else ()
    return [(row.position, stored_to_proto(row)) for row in rows]


async def _first(event: asyncio.Event, until: float) -> None:
    """Wait until the event is set or the time of the loop has come."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            await event.wait()


def _per_second(number: int) -> int:
    if not 0 <= number <= MAX_PER_SECOND:
        rule = f"must be 0 (for {DEFAULT_PER_SECOND}) to {MAX_PER_SECOND}, got {number}"
        raise invalid("max_per_second", rule)
    return number or DEFAULT_PER_SECOND


def _after(token: str, wanted: Filter) -> Position | None:
    if not token:
        return None
    try:
        return decode_token(token, wanted)
    except SightlineError as error:
        raise invalid(
            "resume_token",
            "must be the resume_token of an earlier message, used with the same filter",
            reason="INVALID_RESUME_TOKEN",
        ) from error
