"""Two servers on one store: twins wait for each other, and leases are renewed and taken over."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import grpc
import pytest

from inference_service.idempotency.once import Once, Reply
from servicekit.errors import SightlineError
from tests.unit.inference_service.idempotency.work import HeldStore, Work, ends_soon, until

KEY, PRINT, OTHER_PRINT = b"k" * 32, b"f" * 32, b"g" * 32
LEASE = 2.0  # renewed four times as often, whatever else the machine does


class Process:
    """What one server process has: its own connection, and nothing else in common."""

    def __init__(self, path: Path) -> None:
        self.events: Counter[str] = Counter()
        self.store = HeldStore(str(path))
        self.once = Once(
            self.store,
            1000.0,
            lease_seconds=LEASE,
            on_event=lambda event: self.events.update([event]),
        )

    def begin(self, work: Work, seconds: float = 10.0) -> "asyncio.Task[Reply]":
        return asyncio.ensure_future(self.once.answer(KEY, PRINT, seconds, work))

    def stop_dead(self) -> None:
        """From now on its store is not used, as if the process were stopped: nothing is renewed."""
        self.store.hold()


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Process]:
    made = Process(tmp_path / "claims.sqlite")
    yield made
    made.store.let_go.set()
    await made.once.close()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Process]:
    made = Process(tmp_path / "claims.sqlite")
    yield made
    await made.once.close()


async def refusal(call: Awaitable[Reply]) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        await call
    return caught.value


async def test_a_twin_waits_for_the_answer_of_the_other(one: Process, two: Process) -> None:
    work, unwanted = Work(b"one", go=False), Work(b"two")
    first = one.begin(work)
    await work.started.wait()
    twins = [two.begin(unwanted) for _ in range(3)]
    # It goes on for longer than a lease, which is renewed meanwhile.
    await asyncio.sleep(1.25 * LEASE)
    work.go.set()
    assert await first == Reply(b"one", replayed=False)
    assert await asyncio.gather(*twins) == [Reply(b"one", replayed=True)] * 3
    assert unwanted.runs == 0
    assert two.events == {"join": 3}


async def test_a_twin_takes_over_once_the_other_fails(one: Process, two: Process) -> None:
    work = Work(ZeroDivisionError(), go=False)
    first = one.begin(work)
    await work.started.wait()
    twin = two.begin(Work(b"two"))
    assert not await ends_soon(twin)
    work.go.set()
    with pytest.raises(ZeroDivisionError):
        await first
    assert await twin == Reply(b"two", replayed=False)


async def test_a_twin_is_told_shortly_before_its_deadline(one: Process, two: Process) -> None:
    work = Work(b"one", go=False)
    first = one.begin(work)
    await work.started.wait()
    before = asyncio.get_running_loop().time()
    error = await refusal(two.begin(Work(b"two"), seconds=0.5))
    assert asyncio.get_running_loop().time() - before > 0.4
    assert error.code is grpc.StatusCode.ABORTED
    assert error.reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
    assert error.retry_after is not None
    assert 0 < error.retry_after <= LEASE
    work.go.set()
    await first


async def test_a_twin_that_joined_one_with_less_time_goes_on_waiting(
    one: Process, two: Process
) -> None:
    work = Work(b"one", go=False)
    first = one.begin(work)
    await work.started.wait()
    hasty, patient = two.begin(Work(b"two"), seconds=0.3), two.begin(Work(b"three"))
    assert (await refusal(hasty)).reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
    work.go.set()
    assert await patient == Reply(b"one", replayed=True)
    await first


async def test_another_request_is_refused_at_once(one: Process, two: Process) -> None:
    work = Work(b"one", go=False)
    first = one.begin(work)
    await work.started.wait()
    asked = two.once.answer(KEY, OTHER_PRINT, 10.0, Work(b"two"))
    error = await refusal(asyncio.wait_for(asked, 2))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    assert two.events == {"mismatch": 1}
    # Nor does it wait with a twin that waits for the first.
    twin = two.begin(Work(b"two"))
    await until(lambda: KEY in two.once._flights and two.once._flights[KEY].bound.is_set())
    asked = two.once.answer(KEY, OTHER_PRINT, 10.0, Work(b"two"))
    assert (await refusal(asyncio.wait_for(asked, 2))).reason == "IDEMPOTENCY_KEY_REUSED"
    work.go.set()
    assert await first == Reply(b"one", replayed=False)
    assert await twin == Reply(b"one", replayed=True)


async def test_the_claim_of_one_that_died_is_taken_over_when_its_lease_ends(
    one: Process, two: Process
) -> None:
    work = Work(b"one", go=False)
    zombie = one.begin(work)
    await work.started.wait()
    one.stop_dead()
    before = asyncio.get_running_loop().time()
    assert await two.begin(Work(b"two")) == Reply(b"two", replayed=False)
    assert asyncio.get_running_loop().time() - before < LEASE + 2.0
    # The zombie comes back: its caller gets what it made, and nobody else does.
    one.store.let_go.set()
    work.go.set()
    assert await zombie == Reply(b"one", replayed=False)
    assert one.events == {"lost_lease": 1}
    assert await one.begin(Work(b"three")) == Reply(b"two", replayed=True)


async def test_a_claim_that_was_lost_is_not_renewed(one: Process, two: Process) -> None:
    work, heir = Work(b"one", go=False), Work(b"two", go=False)
    zombie = one.begin(work)
    await work.started.wait()
    # Its lease is moved into the past, as if it had been stopped for a while.
    two.store._database.execute("UPDATE claims SET until = 0")
    successor = two.begin(heir)
    await heir.started.wait()
    await until(lambda: one.once._keeper._leases == {})
    heir.go.set()
    assert await successor == Reply(b"two", replayed=False)
    work.go.set()
    assert await zombie == Reply(b"one", replayed=False)
    assert one.events == {"lost_lease": 1}
