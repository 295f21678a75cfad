"""Group commit: the messages of all streams are committed in groups.

One thread decodes a group while another thread commits the group before it, and messages of the
next group arrive. A group closes when it has enough bytes, or when its first message has waited
long enough. If more messages wait than fit into a group, callers take turns.

The received and uncommitted bytes of all streams are bounded: each message has a reservation of its
bytes, which ends after the commit. Beyond the bound no stream is read, so that gRPC's flow control
stops the devices. Everything except decoding and committing runs on one event loop.
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
from servicekit.calls.memory_budget import MessageReservation
from servicekit.errors import SightlineError, out_of_memory

logger = logging.getLogger(__name__)

MAX_REJECTIONS = 1000
"""Maximum number of rejections listed in a response; further ones are only counted."""
MESSAGE_COST = 512
"""Bytes of Python objects per message, which count in addition to its own bytes. Without them, a
flood of empty messages would fit into any bound while the disk does not respond."""

P = TypeVar("P")
T = TypeVar("T")


@dataclass(slots=True)
class Totals:
    """The totals of a stream so far."""

    committed_through: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    gap_sequences: int = 0
    rejections: list[Rejection] = field(default_factory=list)

    def add(self, outcome: MessageOutcome) -> None:
        """Add the outcome of one message."""
        self.committed_through = max(self.committed_through, outcome.committed_through)
        self.accepted += outcome.accepted
        self.duplicates += outcome.duplicates
        self.rejected += len(outcome.rejections)
        self.gap_sequences += outcome.gap_sequences
        self.rejections += outcome.rejections[: MAX_REJECTIONS - len(self.rejections)]


class LogStream:
    """One stream of messages. Created by `GroupCommitter.open`."""

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

    def send(self, payload: bytes, reservation: MessageReservation) -> None:
        """Queue the next message, with the reservation of its bytes until it is committed."""
        self._committer.put(self, payload, reservation, first=self._sent == 0)
        self._sent += 1

    async def finish(self) -> Totals:
        """Wait until every message is committed, and return the totals of the stream.

        Raises:
            SightlineError: a message failed; the messages before it are committed.
        """
        while self._error is None and self._settled < self._sent:
            self._moved.clear()
            await self._moved.wait()
        if self._error is not None:
            raise self._error
        return self._totals

    def settle(self, outcome: MessageOutcome) -> None:
        """Record the outcome of the next message."""
        self._settled += 1
        self._totals.add(outcome)
        if outcome.error is not None and self._error is None:
            self._error = outcome.error
            if not self.ended.done():
                self.ended.set_result(None)
        self._moved.set()

    @property
    def failed(self) -> bool:
        """True if a message has failed; later messages are ignored."""
        return self._error is not None


class _Sent(NamedTuple):
    """A message that waits for its commit."""

    stream: LogStream
    message: Message
    reservation: MessageReservation


class GroupCommitter(Generic[P]):
    """A queue of the messages of all streams, which are committed in groups.

    Args:
        prepare: does the work that does not depend on earlier groups; called on a thread of its
            own, one group at a time.
        commit: commits a result of `prepare` without the messages of these indexes; called on
            another thread, one group at a time, in the order of the groups. It calls its third
            argument when only COMMIT is left, which does not need the interpreter's lock. It
            returns one outcome per message, in order. It raises SightlineError if nothing of the
            group is committed.
        group_bytes: size from which a group accepts no further message, bytes, including
            `MESSAGE_COST` bytes per message.
        group_wait: time that the first message of a group waits for others, s.
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

    def put(
        self, stream: LogStream, payload: bytes, reservation: MessageReservation, *, first: bool
    ) -> None:
        """Queue the next message of a stream.

        Raises:
            SightlineError: UNAVAILABLE; the committer is closing.
        """
        if self._closing:
            reservation.release()
            raise draining_error()
        if not self._waiting:
            self._oldest = asyncio.get_running_loop().time()
        message = Message(stream.number, stream.opening, payload, first)
        self._waiting.put(stream.flow, _size(payload), _Sent(stream, message, reservation))
        self._arrived.set()
        if self._waiting.bytes >= self._group_bytes:
            self._full.set()

    async def close(self) -> None:
        """Commit the queued messages and end the threads; later messages are refused."""
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
            messages = [sent.message for sent in group]
            prepared = await self._on(self._preparer, self._prepare, messages)
            # The next group is closed only after this: it has gathered for as long as this one.
            if committing is not None:
                await committing
            at_commit = asyncio.Event()
            committing = asyncio.ensure_future(self._settle(group, prepared, at_commit))
            # Decoding holds the interpreter's lock for long. Until COMMIT, the writer needs it:
            # its insert reads Arrow's columns through Python.
            await at_commit.wait()
        if committing is not None:
            await committing

    async def _settle(
        self,
        group: Sequence["_Sent"],
        prepared: P | SightlineError,
        at_commit: asyncio.Event,
    ) -> None:
        """Commit a group, and pass the outcomes to its streams."""
        loop = asyncio.get_running_loop()
        on_commit = functools.partial(loop.call_soon_threadsafe, at_commit.set)
        # The group before may have failed some streams while this one was prepared.
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
            sent.reservation.release()

    async def _on(
        self, executor: ThreadPoolExecutor, work: Callable[..., T], *arguments: object
    ) -> T | SightlineError:
        """Run the work on a thread; return its result, or an error if it raises anything."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
        except SightlineError as error:
            return error
        except asyncio.CancelledError:
            raise
        except MemoryError:
            logger.exception("not enough memory for a group of messages")
            return out_of_memory()
        except BaseException:  # a panic in native code is not an Exception
            logger.exception("a group of messages failed")
            return _internal_error()

    async def _gathered(self) -> bool:
        """Wait until a group is complete; return False if the committer is closed and empty."""
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
        """Return the next group, without messages of failed streams."""
        group: list[_Sent] = []
        for sent in self._waiting.take(self._group_bytes):
            if sent.stream.failed:
                sent.reservation.release()
            else:
                group.append(sent)
        if self._waiting.bytes < self._group_bytes and not self._closing:
            self._full.clear()
        return group


def _size(payload: bytes) -> int:
    """Return the size of a message in the bounds, bytes."""
    return len(payload) + MESSAGE_COST


def draining_error() -> SightlineError:
    """Return the error for a stream that is cut because the server is stopping."""
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE, "DRAINING", "the server is shutting down", retry_after=1.0
    )


def _internal_error() -> SightlineError:
    return SightlineError(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        "the messages could not be committed; the server's log has the cause",
    )
