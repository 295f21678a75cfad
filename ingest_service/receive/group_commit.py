"""Collects messages of all streams and commits what waits as one group.

One thread decodes a group while another commits the one before it; meanwhile the next gathers. A
group closes when it holds enough bytes or its first message has waited long enough. Where more
waits than a group holds, callers take turns. What is
received and not yet committed is bounded over all streams: each message brings a lease on its
bytes, which ends here, and beyond the bound no stream is read, so that gRPC's flow control reaches
the devices. Everything else here runs on one event loop.
"""

import asyncio
import functools
import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import grpc

from ingest_service.receive.fair_waiting import FairWaiting
from ingest_service.receive.group import Message, MessageOutcome, Rejection
from ingest_service.store.protocol import StreamOpening
from servicekit.auth.caller import current_caller
from servicekit.calls.in_flight import Lease
from servicekit.errors import SightlineError, out_of_memory

logger = logging.getLogger(__name__)

MAX_REJECTIONS = 1000
"""Rejections that an answer lists; the rest are counted."""
MESSAGE_COST = 512
"""Bytes that a message counts for besides its own: what Python and the group keep for it. Without
it, a flood of empty messages would fit into any bound while the disk stands still."""

P = TypeVar("P")
T = TypeVar("T")


@dataclass(slots=True)
class Totals:
    """What became of a stream so far."""

    committed_through: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    gap_sequences: int = 0
    rejections: list[Rejection] = field(default_factory=list)

    def add(self, outcome: MessageOutcome) -> None:
        """Add one message."""
        self.committed_through = max(self.committed_through, outcome.committed_through)
        self.accepted += outcome.accepted
        self.duplicates += outcome.duplicates
        self.rejected += len(outcome.rejections)
        self.gap_sequences += outcome.gap_sequences
        self.rejections += outcome.rejections[: MAX_REJECTIONS - len(self.rejections)]


class LogStream:
    """One stream of messages. Made by `GroupCommitter.open`."""

    def __init__(
        self, number: int, opening: StreamOpening, committer: "GroupCommitter[Any]"
    ) -> None:
        self.number = number
        self.opening = opening
        self.flow = current_caller().flow
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done as soon as a message has failed; `finish` then raises."""
        self._committer = committer
        self._sent = 0
        self._settled = 0
        self._totals = Totals()
        self._error: SightlineError | None = None
        self._moved = asyncio.Event()

    def send(self, payload: bytes, lease: Lease) -> None:
        """Hand over the next message, with the bytes that it counts for until it is committed."""
        self._committer.put(self, payload, lease, first=self._sent == 0)
        self._sent += 1

    async def finish(self) -> Totals:
        """Return what became of the stream, once every message of it is committed.

        Raises:
            SightlineError: a message failed; what was sent before it is committed.
        """
        while self._error is None and self._settled < self._sent:
            self._moved.clear()
            await self._moved.wait()
        if self._error is not None:
            raise self._error
        return self._totals

    def settle(self, outcome: MessageOutcome) -> None:
        """Take note of what became of the next message."""
        self._settled += 1
        self._totals.add(outcome)
        if outcome.error is not None and self._error is None:
            self._error = outcome.error
            if not self.ended.done():
                self.ended.set_result(None)
        self._moved.set()

    @property
    def failed(self) -> bool:
        """Whether a message has failed: those after it count for nothing."""
        return self._error is not None


class _Sent(NamedTuple):
    """A message that waits for its commit."""

    stream: LogStream
    message: Message
    lease: Lease


class GroupCommitter(Generic[P]):
    """Commits the messages of all streams in groups.

    Args:
        prepare: does what can be done before the groups before it are committed; called on a
            thread of its own, one group at a time.
        commit: commits what `prepare` returned, leaving out the messages of these indexes; called
            on another thread, one group at a time, in the order of the groups. Calls its third
            argument when only COMMIT is left, which needs no interpreter. Returns one outcome a
            message, in their order. Raises SightlineError if nothing of the group is committed.
        group_bytes: a group takes no further message beyond this size, bytes.
        group_wait: how long the first message of a group waits for others, s.

    `group_bytes` counts `MESSAGE_COST` bytes for each message besides its own.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[Message]], P],
        commit: Callable[[P, Collection[int], Callable[[], object]], Sequence[MessageOutcome]],
        *,
        group_bytes: int,
        group_wait: float,
    ) -> None:
        self._prepare = prepare
        self._commit = commit
        self._group_bytes = group_bytes
        self._group_wait = group_wait
        self._waiting: FairWaiting[_Sent] = FairWaiting()
        self._oldest = 0.0
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._closing = False
        self._numbers = itertools.count()
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="preparer")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._running = asyncio.ensure_future(self._run())

    def open(self, opening: StreamOpening) -> LogStream:
        """Return a new stream."""
        return LogStream(next(self._numbers), opening, self)

    def put(self, stream: LogStream, payload: bytes, lease: Lease, *, first: bool) -> None:
        """Take the next message of a stream.

        Raises:
            SightlineError: UNAVAILABLE; the committer is closing.
        """
        if self._closing:
            lease.give()
            raise draining_error()
        if not self._waiting:
            self._oldest = asyncio.get_running_loop().time()
        message = Message(stream.number, stream.opening, payload, first)
        self._waiting.put(stream.flow, _size(payload), _Sent(stream, message, lease))
        self._arrived.set()
        if self._waiting.bytes >= self._group_bytes:
            self._full.set()

    async def close(self) -> None:
        """Commit what waits and end the writer; messages that come later are refused."""
        self._closing = True
        self._arrived.set()
        self._full.set()
        await self._running
        self._preparer.shutdown()
        self._writer.shutdown()

    async def _run(self) -> None:
        committing: asyncio.Future[None] | None = None
        while await self._gathered():
            group = self._take()
            if not group:
                continue
            messages = [each.message for each in group]
            prepared = await self._on(self._preparer, self._prepare, messages)
            # Only then the next group is taken: it has gathered for as long as this one.
            if committing is not None:
                await committing
            at_commit = asyncio.Event()
            committing = asyncio.ensure_future(self._settle(group, prepared, at_commit))
            # Decoding keeps the interpreter's lock for long. Until then the writer needs it, also
            # for its insert, which reads Arrow's columns through Python.
            await at_commit.wait()
        if committing is not None:
            await committing

    async def _settle(
        self,
        group: Sequence["_Sent"],
        prepared: P | SightlineError,
        at_commit: asyncio.Event,
    ) -> None:
        """Commit a group and tells its streams."""
        loop = asyncio.get_running_loop()
        on_commit = functools.partial(loop.call_soon_threadsafe, at_commit.set)
        # The group before may have ended streams while this one was prepared.
        ended = {index for index, sent in enumerate(group) if sent.stream.failed}
        outcomes: Sequence[MessageOutcome] | SightlineError = ()
        if isinstance(prepared, SightlineError):
            outcomes = prepared
        elif len(ended) < len(group):
            outcomes = await self._on(self._writer, self._commit, prepared, ended, on_commit)
        at_commit.set()
        if isinstance(outcomes, SightlineError):
            outcomes = [MessageOutcome(error=outcomes)] * len(group)
        for index, sent in enumerate(group):
            if index not in ended:
                sent.stream.settle(outcomes[index])
            sent.lease.give()

    async def _on(
        self, executor: ThreadPoolExecutor, work: Callable[..., T], *arguments: object
    ) -> T | SightlineError:
        """Return what the work returns or, whatever it raises, an error for its streams."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
        except SightlineError as error:
            return error
        except asyncio.CancelledError:
            raise
        except MemoryError:
            logger.exception("no memory for a group of messages")
            return out_of_memory()
        except BaseException:  # a panic in native code is no Exception, and must not end the writer
            logger.exception("a group of messages failed")
            return _internal_error()

    async def _gathered(self) -> bool:
        """Wait until a group is to be committed; return False if none will ever be."""
        while not self._waiting:
            if self._closing:
                return False
            self._arrived.clear()
            await self._arrived.wait()
        try:
            async with asyncio.timeout_at(self._oldest + self._group_wait):
                await self._full.wait()
        except TimeoutError:
            pass
        return True

    def _take(self) -> list["_Sent"]:
        """Return the next group: as many messages as fit its size, of streams that go on."""
        group: list[_Sent] = []
        for sent in self._waiting.take(self._group_bytes):
            if sent.stream.failed:
                sent.lease.give()
            else:
                group.append(sent)
        if self._waiting.bytes < self._group_bytes and not self._closing:
            self._full.clear()
        return group


def _size(payload: bytes) -> int:
    """Return what a message counts for in the bounds, bytes."""
    return len(payload) + MESSAGE_COST


def draining_error() -> SightlineError:
    """Return the error for a stream that is cut because the server ends."""
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE, "DRAINING", "the server is shutting down", retry_after=1.0
    )


def _internal_error() -> SightlineError:
    return SightlineError(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        "the messages could not be committed; the server's log says why",
    )
