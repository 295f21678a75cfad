"""Calls with a key: answered once, joined, replayed, let go. On a real store."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest

from inference_service.idempotency import Outcome
from inference_service.once import Once, Reply
from inference_service.sqlite_store import SqliteStore
from servicekit.errors import SightlineError, invalid

KEY, PRINT, OTHER_PRINT = b"k" * 32, b"f" * 32, b"g" * 32
KEEP = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Work:
    """Counts its runs; each waits for `go` and then ends as `ends` says."""

    def __init__(self, *ends: bytes | BaseException, go: bool = True) -> None:
        self.ends = list(ends)
        self.runs = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        if go:
            self.go.set()

    async def __call__(self) -> bytes:
        self.runs += 1
        self.started.set()
        await self.go.wait()
        end = self.ends[min(self.runs, len(self.ends)) - 1]
        if isinstance(end, BaseException):
            raise end
        return end


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> SqliteStore:
    return SqliteStore("")


@pytest.fixture
async def once(store: SqliteStore, clock: Clock) -> AsyncIterator[Once]:
    made = Once(store, KEEP, clock)
    yield made
    await made.close()


def ask(
    once: Once, work: Callable[[], Awaitable[bytes]], fingerprint: bytes = PRINT
) -> Awaitable[Reply]:
    return once.answer(KEY, fingerprint, 5.0, work)


async def settled(task: "asyncio.Task[Reply]") -> bool:
    """Whether the task ends soon."""
    done, _ = await asyncio.wait({task}, timeout=0.05)
    return bool(done)


async def test_the_second_call_gets_the_first_one_s_answer(once: Once) -> None:
    work = Work(b"one", b"two")
    assert await ask(once, work) == Reply(b"one", replayed=False)
    assert await ask(once, work) == Reply(b"one", replayed=True)
    assert work.runs == 1


async def test_an_answer_is_forgotten_after_its_time(once: Once, clock: Clock) -> None:
    work = Work(b"one", b"two")
    await ask(once, work)
    clock.now += KEEP - 0.001
    assert (await ask(once, work)).replayed
    clock.now += 0.001
    assert await ask(once, work) == Reply(b"two", replayed=False)


async def test_a_key_is_bound_to_its_request(once: Once) -> None:
    await ask(once, Work(b"one"))
    other = Work(b"two")
    with pytest.raises(SightlineError) as caught:
        await ask(once, other, OTHER_PRINT)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert other.runs == 0


async def test_a_key_in_flight_is_bound_too_and_refused_at_once(once: Once) -> None:
    work = Work(b"one", go=False)
    first = asyncio.ensure_future(ask(once, work))
    await work.started.wait()
    with pytest.raises(SightlineError, match="used with another"):
        await asyncio.wait_for(ask(once, Work(b"two"), OTHER_PRINT), 1)
    work.go.set()
    assert (await first).payload == b"one"


async def test_twins_join(once: Once) -> None:
    work = Work(b"one", b"two", go=False)
    calls = [asyncio.ensure_future(ask(once, work)) for _ in range(5)]
    await work.started.wait()
    assert not await settled(calls[1])
    work.go.set()
    replies = await asyncio.gather(*calls)
    assert {reply.payload for reply in replies} == {b"one"}
    assert [reply.replayed for reply in replies] == [False, True, True, True, True]
    assert work.runs == 1


TRANSIENT = [
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
]


@pytest.mark.parametrize("code", TRANSIENT)
async def test_failures_that_may_pass_are_not_kept(once: Once, code: grpc.StatusCode) -> None:
    work = Work(SightlineError(code, "X", "x"), b"two")
    with pytest.raises(SightlineError):
        await ask(once, work)
    assert await ask(once, work) == Reply(b"two", replayed=False)


async def test_unforeseen_failures_are_not_kept(once: Once) -> None:
    work = Work(ZeroDivisionError(), b"two")
    with pytest.raises(ZeroDivisionError):
        await ask(once, work)
    assert (await ask(once, work)).payload == b"two"


async def test_mistakes_of_the_caller_are_kept_with_their_details(once: Once) -> None:
    work = Work(invalid("images[0].data", "is corrupt", reason="IMAGE_CORRUPT"), b"two")
    with pytest.raises(SightlineError) as first:
        await ask(once, work)
    with pytest.raises(SightlineError) as second:
        await ask(once, work)
    assert work.runs == 1
    for name in ("code", "reason", "message", "violations"):
        assert getattr(second.value, name) == getattr(first.value, name)


async def test_a_caller_that_gives_up_leaves_the_work_to_its_twin(once: Once) -> None:
    work = Work(b"one", b"two", go=False)
    first = asyncio.ensure_future(ask(once, work))
    await work.started.wait()
    twin = asyncio.ensure_future(ask(once, work))
    assert not await settled(twin)
    first.cancel()
    work.go.set()
    assert await asyncio.wait_for(twin, 5) == Reply(b"two", replayed=False)
    assert first.cancelled()
    assert work.runs == 2


async def test_a_twin_that_gives_up_does_not_touch_the_first(once: Once) -> None:
    work = Work(b"one", go=False)
    first = asyncio.ensure_future(ask(once, work))
    await work.started.wait()
    twin = asyncio.ensure_future(ask(once, work))
    assert not await settled(twin)
    twin.cancel()
    assert await settled(twin)
    work.go.set()
    assert await first == Reply(b"one", replayed=False)
    assert once._turns == {}


async def test_a_caller_that_gives_up_while_claiming_leaves_the_key_free(once: Once) -> None:
    first = asyncio.ensure_future(ask(once, Work(b"one")))
    await asyncio.sleep(0)  # the claim is on its way to the store's thread
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await ask(once, Work(b"two")) == Reply(b"two", replayed=False)


async def test_a_caller_that_gives_up_while_its_answer_is_recorded_finds_it_later(
    once: Once,
) -> None:
    work = Work(b"one", b"two", go=False)
    first = asyncio.ensure_future(ask(once, work))
    await work.started.wait()
    held_up = threading.Event()
    once._thread.submit(held_up.wait, 10)
    work.go.set()
    assert not await settled(first)  # the answer waits for the store's thread
    first.cancel()
    assert await settled(first)
    held_up.set()
    assert await ask(once, work) == Reply(b"one", replayed=True)


async def test_a_twin_in_another_process_is_an_abort(
    once: Once, store: SqliteStore, clock: Clock
) -> None:
    until = clock.now + 0.2
    store.claim(KEY, fingerprint=PRINT, owner=b"elsewhere", now=clock.now, until=until)
    work = Work(b"one")
    with pytest.raises(SightlineError) as caught:
        await ask(once, work)
    assert caught.value.code is grpc.StatusCode.ABORTED
    assert caught.value.reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
    assert caught.value.retry_after == pytest.approx(0.2, abs=1e-6)
    assert work.runs == 0
    clock.now += 0.2  # its process died: the lease ends, the key is free
    assert await ask(once, work) == Reply(b"one", replayed=False)


async def test_the_lease_is_a_little_longer_than_the_call(
    once: Once, store: SqliteStore, clock: Clock
) -> None:
    work = Work(b"one", go=False)
    call = asyncio.ensure_future(ask(once, work))
    await work.started.wait()
    held = store.claim(KEY, fingerprint=PRINT, owner=b"x", now=clock.now, until=clock.now + 9)
    assert held is not None
    assert clock.now + 5 < held.until <= clock.now + 7
    work.go.set()
    await call


async def test_a_zombie_keeps_its_answer_to_itself(
    once: Once, store: SqliteStore, clock: Clock
) -> None:
    work = Work(b"one", go=False)
    zombie = asyncio.ensure_future(ask(once, work))
    await work.started.wait()
    clock.now += 100
    heir = store.claim(KEY, fingerprint=PRINT, owner=b"heir", now=clock.now, until=clock.now + 9)
    assert heir is None
    work.go.set()
    assert await zombie == Reply(b"one", replayed=False)
    store.settle(KEY, owner=b"heir", outcome=Outcome(True, b"two"), until=clock.now + 9)
    assert await ask(once, work) == Reply(b"two", replayed=True)


async def test_without_its_store_nothing_is_computed(once: Once, store: SqliteStore) -> None:
    store._database.execute("DROP TABLE claims")
    work = Work(b"one")
    with pytest.raises(SightlineError) as caught:
        await ask(once, work)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason == "IDEMPOTENCY_STORE_UNAVAILABLE"
    assert work.runs == 0


async def test_an_answer_that_cannot_be_recorded_is_given_all_the_same(
    once: Once, store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> bytes:
        store._database.execute("DROP TABLE claims")
        return b"one"

    assert await ask(once, work) == Reply(b"one", replayed=False)
    assert "cannot record" in caplog.text


async def test_a_release_that_fails_is_logged(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    once = Once(store, KEEP)

    async def work() -> bytes:
        store._database.execute("DROP TABLE claims")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ask(once, work)
    await once.close()
    assert "cannot release" in caplog.text


async def test_closing_waits_for_what_was_asked_for() -> None:
    released = []

    class Slow(SqliteStore):
        def release(self, key: bytes, *, owner: bytes) -> None:
            time.sleep(0.05)
            super().release(key, owner=owner)
            released.append(key)

    once = Once(Slow(""), KEEP)
    with pytest.raises(ZeroDivisionError):
        await ask(once, Work(ZeroDivisionError()))
    await once.close()
    assert released == [KEY]


async def test_memory_does_not_grow_with_keys(once: Once) -> None:
    for number in range(50):
        await once.answer(number.to_bytes(32), PRINT, 5.0, Work(b"one"))
    assert once._turns == {}
