import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

import grpc
import pytest

from ingest_service.group import Message, Outcome, Rejection
from ingest_service.group_commit import MAX_REJECTIONS, MESSAGE_COST, GroupCommitter
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import opening

PATIENCE = 5.0
"""How long a test waits for what must happen, s."""


class PanicError(BaseException):
    """What native code raises when it panics is no Exception."""


class Writer:
    """A commit that a test holds, watches and makes fail; runs on threads of the committer."""

    def __init__(self) -> None:
        self.groups: list[list[bytes]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.began = threading.Semaphore(0)
        self.outcome: Callable[[Message], Outcome] = lambda _: Outcome(accepted=1)
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
    ) -> Sequence[Outcome]:
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
def writer() -> Writer:
    return Writer()


Open = Callable[..., GroupCommitter[Sequence[Message]]]


@pytest.fixture
async def committer_of(writer: Writer) -> AsyncIterator[Open]:
    made: list[GroupCommitter[Sequence[Message]]] = []

    def make(**limits: Any) -> GroupCommitter[Sequence[Message]]:
        base = {"group_bytes": 10_000, "group_wait": 0.001, "max_inflight_bytes": 100_000}
        made.append(GroupCommitter(writer.prepare, writer.commit, **{**base, **limits}))
        return made[-1]

    async with asyncio.timeout(PATIENCE * 2):
        yield make
        writer.may_go.set()
        for committer in made:
            await committer.close()


async def test_a_stream_is_answered_when_all_of_it_is_committed(
    committer_of: Open, writer: Writer
) -> None:
    stream = committer_of().open(opening())
    writer.may_go.clear()
    await stream.send(b"one")
    await stream.send(b"two")
    answer = asyncio.create_task(stream.finish())
    await writer.has_begun()
    assert not answer.done()
    writer.may_go.set()
    assert (await answer).accepted == 2


async def test_what_waits_during_a_commit_is_the_next_group(
    committer_of: Open, writer: Writer
) -> None:
    committer = committer_of()
    streams = [committer.open(opening()) for _ in range(3)]
    writer.may_go.clear()
    await streams[0].send(b"first")
    await writer.has_begun()
    for stream in streams:
        await stream.send(b"later")
    writer.may_go.set()
    for stream in streams:
        await stream.finish()
    assert writer.groups == [[b"first"], [b"later"] * 3]
    assert len(writer.threads) == 1, "one writer"
    assert threading.get_ident() not in writer.threads


async def test_the_next_group_is_prepared_during_a_commit(
    committer_of: Open, writer: Writer
) -> None:
    stream = committer_of().open(opening())
    writer.may_go.clear()
    for payload in (b"first", b"second"):
        await stream.send(payload)
        await writer.has_prepared()
    assert writer.groups == [[b"first"]], "the second waits for its commit"
    await stream.send(b"third")
    writer.may_go.set()
    await stream.finish()
    assert writer.groups == [[b"first"], [b"second"], [b"third"]]


async def test_no_group_is_prepared_while_a_commit_needs_the_interpreter(
    committer_of: Open, writer: Writer
) -> None:
    needs_it = threading.Event()
    commit = writer.commit

    def deciding(
        messages: Sequence[Message], left_out: Collection[int], on_commit: Callable[[], object]
    ) -> Sequence[Outcome]:
        assert needs_it.wait(PATIENCE)
        return commit(messages, left_out, on_commit)

    writer.commit = deciding  # type: ignore[method-assign] # the committer takes it from here
    stream = committer_of().open(opening())
    for payload in (b"first", b"second"):
        await stream.send(payload)
    await writer.has_prepared()
    await stream.send(b"third")
    assert not await asyncio.to_thread(writer.prepared.acquire, timeout=0.05)
    needs_it.set()
    await stream.finish()
    assert writer.groups == [[b"first", b"second"], [b"third"]]


async def test_a_group_that_cannot_be_prepared_fails_and_the_next_goes_on(
    committer_of: Open, writer: Writer
) -> None:
    committer = committer_of()
    bad, good = committer.open(opening()), committer.open(opening())
    await bad.send(b"poison")
    with pytest.raises(SightlineError, match="INTERNAL"):
        await bad.finish()
    await good.send(b"fine")
    assert (await good.finish()).accepted == 1


async def test_a_group_waits_for_company_and_no_longer_than_told(
    committer_of: Open, writer: Writer
) -> None:
    committer = committer_of(group_wait=0.05)
    one, two = committer.open(opening()), committer.open(opening())
    begun = asyncio.get_running_loop().time()
    await one.send(b"one")
    await asyncio.sleep(0)
    await two.send(b"two")
    await writer.has_begun()
    assert asyncio.get_running_loop().time() - begun >= 0.045
    assert writer.groups == [[b"one", b"two"]]


async def test_a_full_group_does_not_wait(committer_of: Open, writer: Writer) -> None:
    committer = committer_of(group_bytes=10 + MESSAGE_COST, group_wait=1000)
    stream = committer.open(opening())
    await stream.send(b"x" * 10)
    await stream.finish()
    assert writer.groups == [[b"x" * 10]]


async def test_a_group_is_bounded_in_bytes(committer_of: Open, writer: Writer) -> None:
    committer = committer_of(group_bytes=2 * (4 + MESSAGE_COST) + 1)
    stream = committer.open(opening())
    writer.may_go.clear()
    await stream.send(b"x")
    await writer.has_begun()
    for _ in range(5):
        await stream.send(b"four")
    writer.may_go.set()
    await stream.finish()
    assert writer.groups == [[b"x"], [b"four"] * 3, [b"four"] * 2]


@pytest.mark.parametrize("size", [8, 0], ids=["bytes", "messages without any"])
async def test_a_sender_waits_while_too_much_is_in_flight(
    committer_of: Open, writer: Writer, size: int
) -> None:
    committer = committer_of(max_inflight_bytes=2 * MESSAGE_COST + 2 * size - 1)
    one, two = committer.open(opening()), committer.open(opening())
    writer.may_go.clear()
    await one.send(b"x" * size)
    await writer.has_begun()
    held = asyncio.create_task(two.send(b"y" * size))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not held.done(), "beyond the bound a sender must be held, over all streams"
    writer.may_go.set()
    await held
    assert (await two.finish()).accepted == 1


async def test_messages_tell_their_stream_and_which_is_its_first(
    committer_of: Open, writer: Writer
) -> None:
    seen: list[tuple[int, bool]] = []

    def note(message: Message) -> Outcome:
        seen.append((message.stream, message.first))
        return Outcome()

    writer.outcome = note
    committer = committer_of()
    one, two = committer.open(opening()), committer.open(opening())
    for stream in (one, two, one):
        await stream.send(b"")
        await stream.finish()
    assert seen == [(one.number, True), (two.number, True), (one.number, False)]
    assert one.number != two.number


async def test_totals_add_up_and_list_the_first_rejections(
    committer_of: Open, writer: Writer
) -> None:
    many = tuple(Rejection(n, "f", "R") for n in range(MAX_REJECTIONS - 1))
    writer.outcome = lambda _: Outcome(7, 3, 2, many, 5)
    stream = committer_of().open(opening())
    await stream.send(b"")
    await stream.send(b"")
    totals = await stream.finish()
    assert (totals.committed_through, totals.accepted, totals.duplicates) == (7, 6, 4)
    assert (totals.rejected, totals.gap_sequences) == (2 * len(many), 10)
    assert totals.rejections == [*many, many[0]]


def failing(reason: str) -> SightlineError:
    return SightlineError(grpc.StatusCode.FAILED_PRECONDITION, reason, "no")


async def test_a_failed_message_ends_its_stream_alone(committer_of: Open, writer: Writer) -> None:
    writer.outcome = lambda m: Outcome(error=failing("HOLE") if m.payload == b"bad" else None)
    committer = committer_of()
    bad, good = committer.open(opening()), committer.open(opening())
    await bad.send(b"fine")
    await bad.send(b"bad")
    await good.send(b"fine")
    await bad.ended
    with pytest.raises(SightlineError, match="HOLE"):
        await bad.finish()
    await good.finish()
    assert not good.ended.done()


async def test_what_a_failed_stream_sent_later_is_dropped(
    committer_of: Open, writer: Writer
) -> None:
    writer.outcome = lambda m: Outcome(error=failing("HOLE") if m.payload == b"bad" else None)
    committer = committer_of(max_inflight_bytes=20)
    bad, good = committer.open(opening()), committer.open(opening())
    writer.may_go.clear()
    await bad.send(b"bad")
    await writer.has_begun()
    await bad.send(b"later")
    writer.may_go.set()
    await bad.ended
    await good.send(b"fifteen bytes !")  # fits only if the dropped bytes are given back
    await good.finish()
    assert [b"later"] not in writer.groups


async def test_what_was_prepared_before_its_stream_failed_is_left_out(
    committer_of: Open, writer: Writer
) -> None:
    writer.outcome = lambda m: Outcome(error=failing("HOLE") if m.payload == b"bad" else None)
    committer = committer_of()
    bad, good = committer.open(opening()), committer.open(opening())
    writer.may_go.clear()
    await bad.send(b"bad")
    await writer.has_prepared()
    for stream in (bad, good):
        await stream.send(b"later")
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
    committer_of: Open, writer: Writer, error: BaseException, reason: str
) -> None:
    committer = committer_of(max_inflight_bytes=10)
    writer.error = error
    streams = [committer.open(opening()) for _ in range(2)]
    for stream in streams:
        await stream.send(b"half!")
    for stream in streams:
        with pytest.raises(SightlineError) as caught:
            await stream.finish()
        assert caught.value.reason == reason
        assert "bug" not in caught.value.message
    writer.error = None
    after = committer.open(opening())
    await after.send(b"0123456789")
    assert (await after.finish()).accepted == 1


async def test_closing_commits_what_waits_and_refuses_what_comes(
    committer_of: Open, writer: Writer
) -> None:
    committer = committer_of(group_wait=1000)
    stream = committer.open(opening())
    await stream.send(b"waiting")
    await committer.close()
    assert (await stream.finish()).accepted == 1
    with pytest.raises(SightlineError) as caught:
        await stream.send(b"late")
    assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "DRAINING")


async def test_a_stream_that_is_given_up_leaves_its_messages_to_be_committed(
    committer_of: Open, writer: Writer
) -> None:
    committer = committer_of(max_inflight_bytes=10)
    gone, stays = committer.open(opening()), committer.open(opening())
    writer.may_go.clear()
    await gone.send(b"12345678")
    waiting = asyncio.create_task(gone.finish())
    await writer.has_begun()
    held = asyncio.create_task(gone.send(b"12345678"))
    await asyncio.sleep(0)
    for task in (waiting, held):
        task.cancel()
    writer.may_go.set()
    await stays.send(b"12345678")
    assert (await stays.finish()).accepted == 1
    assert writer.groups == [[b"12345678"], [b"12345678"]]
