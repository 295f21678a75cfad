import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

import grpc
import pytest

from ingest_service.receive.group import Message, MessageOutcome, Rejection
from ingest_service.receive.group_commit import MAX_REJECTIONS, MESSAGE_COST, GroupCommitter
from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.memory_budget import MemoryBudget, MessageReservation
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import opening

PATIENCE = 5.0
"""How long a test waits for what must happen, s."""


class PanicError(BaseException):
    """A panic of native code, which is not an Exception."""


class HeldWriter:
    """A commit that a test can delay, observe and fail. It runs on threads of the committer."""

    def __init__(self) -> None:
        self.groups: list[list[bytes]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.began = threading.Semaphore(0)
        self.outcome: Callable[[Message], MessageOutcome] = lambda _: MessageOutcome(accepted=1)
        self.error: BaseException | None = None
        self.threads: set[int] = set()
        self.prepared = threading.Semaphore(0)

    def prepare(self, messages: Sequence[Message]) -> Sequence[Message]:
        self.prepared.release()
        if any(message.payload == b"poison" for message in messages):
            raise PanicError
        return messages

    def commit(
        self,
        messages: Sequence[Message],
        left_out: Collection[int],
        on_commit: Callable[[], object],
    ) -> Sequence[MessageOutcome]:
        on_commit()
        self.threads.add(threading.get_ident())
        self.groups.append([m.payload for at, m in enumerate(messages) if at not in left_out])
        self.began.release()
        assert self.may_go.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return [self.outcome(message) for message in messages]

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.began.acquire, timeout=PATIENCE)

    async def has_prepared(self) -> None:
        assert await asyncio.to_thread(self.prepared.acquire, timeout=PATIENCE)


@pytest.fixture
def writer() -> HeldWriter:
    return HeldWriter()


Open = Callable[..., GroupCommitter[Sequence[Message]]]


@pytest.fixture
async def committer_of(writer: HeldWriter) -> AsyncIterator[Open]:
    committers: list[GroupCommitter[Sequence[Message]]] = []

    def make(**limits: Any) -> GroupCommitter[Sequence[Message]]:
        base = {"group_bytes": 10_000, "group_wait": 0.001}
        committers.append(GroupCommitter(writer.prepare, writer.commit, **{**base, **limits}))
        return committers[-1]

    async with asyncio.timeout(PATIENCE * 2):
        yield make
        writer.may_go.set()
        for committer in committers:
            await committer.close()


async def test_a_stream_is_answered_when_all_of_it_is_committed(
    committer_of: Open, writer: HeldWriter
) -> None:
    stream = committer_of().open(opening())
    writer.may_go.clear()
    stream.send(b"one", MessageReservation())
    stream.send(b"two", MessageReservation())
    answer = asyncio.create_task(stream.finish())
    await writer.has_begun()
    assert not answer.done()
    writer.may_go.set()
    assert (await answer).accepted == 2


async def test_what_waits_during_a_commit_is_the_next_group(
    committer_of: Open, writer: HeldWriter
) -> None:
    committer = committer_of()
    streams = [committer.open(opening()) for _ in range(3)]
    writer.may_go.clear()
    streams[0].send(b"first", MessageReservation())
    await writer.has_begun()
    for stream in streams:
        stream.send(b"later", MessageReservation())
    writer.may_go.set()
    for stream in streams:
        await stream.finish()
    assert writer.groups == [[b"first"], [b"later"] * 3]
    assert len(writer.threads) == 1, "one writer"
    assert threading.get_ident() not in writer.threads


async def test_the_next_group_is_prepared_during_a_commit(
    committer_of: Open, writer: HeldWriter
) -> None:
    stream = committer_of().open(opening())
    writer.may_go.clear()
    for payload in (b"first", b"second"):
        stream.send(payload, MessageReservation())
        await writer.has_prepared()
    assert writer.groups == [[b"first"]], "the second waits for its commit"
    stream.send(b"third", MessageReservation())
    writer.may_go.set()
    await stream.finish()
    assert writer.groups == [[b"first"], [b"second"], [b"third"]]


async def test_no_group_is_prepared_while_a_commit_needs_the_interpreter(
    committer_of: Open, writer: HeldWriter
) -> None:
    needs_it = threading.Event()
    commit = writer.commit

    def deciding(
        messages: Sequence[Message], left_out: Collection[int], on_commit: Callable[[], object]
    ) -> Sequence[MessageOutcome]:
        assert needs_it.wait(PATIENCE)
        return commit(messages, left_out, on_commit)

    writer.commit = deciding  # type: ignore[method-assign] # the committer takes it from here
    stream = committer_of().open(opening())
    for payload in (b"first", b"second"):
        stream.send(payload, MessageReservation())
    await writer.has_prepared()
    stream.send(b"third", MessageReservation())
    assert not await asyncio.to_thread(writer.prepared.acquire, timeout=0.05)
    needs_it.set()
    await stream.finish()
    assert writer.groups == [[b"first", b"second"], [b"third"]]


async def test_a_group_that_cannot_be_prepared_fails_and_the_next_goes_on(
    committer_of: Open, writer: HeldWriter
) -> None:
    committer = committer_of()
    bad, good = committer.open(opening()), committer.open(opening())
    bad.send(b"poison", MessageReservation())
    with pytest.raises(SightlineError, match="INTERNAL"):
        await bad.finish()
    good.send(b"fine", MessageReservation())
    assert (await good.finish()).accepted == 1


async def test_a_group_waits_for_company_and_no_longer_than_told(
    committer_of: Open, writer: HeldWriter
) -> None:
    committer = committer_of(group_wait=0.05)
    first, second = committer.open(opening()), committer.open(opening())
    begun = asyncio.get_running_loop().time()
    first.send(b"one", MessageReservation())
    await asyncio.sleep(0)
    second.send(b"two", MessageReservation())
    await writer.has_begun()
    assert asyncio.get_running_loop().time() - begun >= 0.045
    assert writer.groups == [[b"one", b"two"]]


async def test_a_full_group_does_not_wait(committer_of: Open, writer: HeldWriter) -> None:
    committer = committer_of(group_bytes=10 + MESSAGE_COST, group_wait=1000)
    stream = committer.open(opening())
    stream.send(b"x" * 10, MessageReservation())
    await stream.finish()
    assert writer.groups == [[b"x" * 10]]


async def test_a_group_is_bounded_in_bytes(committer_of: Open, writer: HeldWriter) -> None:
    committer = committer_of(group_bytes=2 * (4 + MESSAGE_COST) + 1)
    stream = committer.open(opening())
    writer.may_go.clear()
    stream.send(b"x", MessageReservation())
    await writer.has_begun()
    for _ in range(5):
        stream.send(b"four", MessageReservation())
    writer.may_go.set()
    await stream.finish()
    assert writer.groups == [[b"x"], [b"four"] * 3, [b"four"] * 2]


async def test_bytes_count_until_they_are_committed(committer_of: Open, writer: HeldWriter) -> None:
    committer, budget = committer_of(), MemoryBudget(BudgetBounds(10_000, 100))
    stream = committer.open(opening())
    writer.may_go.clear()
    for size in (10, 20):
        assert budget.reserve("flow", size)
        stream.send(b"x" * size, MessageReservation(budget, "flow", size))
    await writer.has_begun()
    assert budget.held == 30
    writer.may_go.set()
    await stream.finish()
    await committer.close()
    assert budget.held == 0


async def test_messages_tell_their_stream_and_which_is_its_first(
    committer_of: Open, writer: HeldWriter
) -> None:
    seen: list[tuple[int, bool]] = []

    def note(message: Message) -> MessageOutcome:
        seen.append((message.stream, message.first))
        return MessageOutcome()

    writer.outcome = note
    committer = committer_of()
    first, second = committer.open(opening()), committer.open(opening())
    for stream in (first, second, first):
        stream.send(b"", MessageReservation())
        await stream.finish()
    assert seen == [(first.number, True), (second.number, True), (first.number, False)]
    assert first.number != second.number


async def test_totals_add_up_and_list_the_first_rejections(
    committer_of: Open, writer: HeldWriter
) -> None:
    many = tuple(Rejection(n, "f", "R") for n in range(MAX_REJECTIONS - 1))
    writer.outcome = lambda _: MessageOutcome(7, 3, 2, many, 5)
    stream = committer_of().open(opening())
    stream.send(b"", MessageReservation())
    stream.send(b"", MessageReservation())
    totals = await stream.finish()
    assert (totals.committed_through, totals.accepted, totals.duplicates) == (7, 6, 4)
    assert (totals.rejected, totals.gap_sequences) == (2 * len(many), 10)
    assert totals.rejections == [*many, many[0]]


def failing(reason: str) -> SightlineError:
    return SightlineError(grpc.StatusCode.FAILED_PRECONDITION, reason, "no")


async def test_a_failed_message_ends_its_stream_alone(
    committer_of: Open, writer: HeldWriter
) -> None:
    writer.outcome = lambda m: MessageOutcome(
        error=failing("HOLE") if m.payload == b"bad" else None
    )
    committer = committer_of()
    bad, good = committer.open(opening()), committer.open(opening())
    bad.send(b"fine", MessageReservation())
    bad.send(b"bad", MessageReservation())
    good.send(b"fine", MessageReservation())
    await bad.ended
    with pytest.raises(SightlineError, match="HOLE"):
        await bad.finish()
    await good.finish()
    assert not good.ended.done()


async def test_what_a_failed_stream_sent_later_is_dropped(
    committer_of: Open, writer: HeldWriter
) -> None:
    writer.outcome = lambda m: MessageOutcome(
        error=failing("HOLE") if m.payload == b"bad" else None
    )
    committer = committer_of()
    bad, good = committer.open(opening()), committer.open(opening())
    writer.may_go.clear()
    bad.send(b"bad", MessageReservation())
    await writer.has_begun()
    budget = MemoryBudget(BudgetBounds(100, 10))
    assert budget.reserve("flow", 5)
    bad.send(b"later", MessageReservation(budget, "flow", 5))
    writer.may_go.set()
    await bad.ended
    good.send(b"fifteen bytes !", MessageReservation())
    await good.finish()
    assert budget.held == 0, "the dropped bytes are given back"
    assert [b"later"] not in writer.groups


async def test_what_was_prepared_before_its_stream_failed_is_left_out(
    committer_of: Open, writer: HeldWriter
) -> None:
    writer.outcome = lambda m: MessageOutcome(
        error=failing("HOLE") if m.payload == b"bad" else None
    )
    committer = committer_of()
    bad, good = committer.open(opening()), committer.open(opening())
    writer.may_go.clear()
    bad.send(b"bad", MessageReservation())
    await writer.has_prepared()
    for stream in (bad, good):
        stream.send(b"later", MessageReservation())
    await writer.has_prepared()
    writer.may_go.set()
    await good.finish()
    with pytest.raises(SightlineError, match="HOLE"):
        await bad.finish()
    assert writer.groups == [[b"bad"], [b"later"]]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            SightlineError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "no"),
            "STORE_UNAVAILABLE",
        ),
        (RuntimeError("bug"), "INTERNAL"),
        (PanicError(), "INTERNAL"),
    ],
)
async def test_a_group_that_fails_fails_its_members_and_the_next_goes_on(
    committer_of: Open, writer: HeldWriter, error: BaseException, reason: str
) -> None:
    committer = committer_of()
    writer.error = error
    streams = [committer.open(opening()) for _ in range(2)]
    for stream in streams:
        stream.send(b"half!", MessageReservation())
    for stream in streams:
        with pytest.raises(SightlineError) as caught:
            await stream.finish()
        assert caught.value.reason == reason
        assert "bug" not in caught.value.message
    writer.error = None
    after = committer.open(opening())
    after.send(b"0123456789", MessageReservation())
    assert (await after.finish()).accepted == 1


async def test_closing_commits_what_waits_and_refuses_what_comes(
    committer_of: Open, writer: HeldWriter
) -> None:
    committer = committer_of(group_wait=1000)
    stream = committer.open(opening())
    stream.send(b"waiting", MessageReservation())
    await committer.close()
    assert (await stream.finish()).accepted == 1
    with pytest.raises(SightlineError) as caught:
        stream.send(b"late", MessageReservation())
    assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "DRAINING")


async def test_a_stream_that_is_given_up_leaves_its_messages_to_be_committed(
    committer_of: Open, writer: HeldWriter
) -> None:
    committer = committer_of()
    gone, stays = committer.open(opening()), committer.open(opening())
    writer.may_go.clear()
    gone.send(b"12345678", MessageReservation())
    waiting = asyncio.create_task(gone.finish())
    await writer.has_begun()
    waiting.cancel()
    writer.may_go.set()
    stays.send(b"12345678", MessageReservation())
    assert (await stays.finish()).accepted == 1
    assert writer.groups == [[b"12345678"], [b"12345678"]]
