"""Two servers on one store: twins wait for each other, and leases are renewed and taken over."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from inference_service.idempotency.single_flight import CallResponse, SingleFlight
from inference_service.idempotency.sqlite_store import SqliteStore
from servicekit.errors import SightlineError, invalid
from tests.unit.inference_service.idempotency.work import CountedWork, HeldStore, ends_soon, until

KEY, PRINT, OTHER_PRINT = b"k" * 32, b"f" * 32, b"g" * 32
LEASE = 2.0  # renewed four times as often, whatever else the machine does


class ClaimProcess:
    """What one server process has: its own connection, and nothing else in common."""

    def __init__(self, path: Path) -> None:
        self.events: Counter[str] = Counter()
        self.store = HeldStore(str(path))
        self.single_flight = SingleFlight(
            self.store,
            1000.0,
            lease_seconds=LEASE,
            on_event=lambda event: self.events.update([event]),
        )

    def begin(self, work: CountedWork, seconds: float = 10.0) -> "asyncio.Task[CallResponse]":
        return asyncio.ensure_future(self.single_flight.answer(KEY, PRINT, seconds, work))

    def stop_dead(self) -> None:
        """From now on its store is not used, as if the process were stopped: nothing is renewed."""
        self.store.hold()


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[ClaimProcess]:
    made = ClaimProcess(tmp_path / "claims.sqlite")
    yield made
    made.store.let_go.set()
    await made.single_flight.close()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[ClaimProcess]:
    made = ClaimProcess(tmp_path / "claims.sqlite")
    yield made
    await made.single_flight.close()


@pytest.fixture
def third(one: ClaimProcess, tmp_path: Path) -> Iterator[SqliteStore]:
    """A connection on the same file that no keeper uses."""
    with closing(SqliteStore(str(tmp_path / "claims.sqlite"))) as made:
        yield made


async def refusal(call: Awaitable[CallResponse]) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        await call
    return caught.value


async def test_a_twin_waits_for_the_answer_of_the_other(
    one: ClaimProcess, two: ClaimProcess
) -> None:
    work, unwanted = CountedWork(b"one", go=False), CountedWork(b"two")
    first = one.begin(work)
    await work.started.wait()
    twins = [two.begin(unwanted) for _ in range(3)]
    # It goes on for longer than a lease, which is renewed meanwhile.
    await asyncio.sleep(1.25 * LEASE)
    work.go.set()
    assert await first == CallResponse(b"one", replayed=False)
    assert await asyncio.gather(*twins) == [CallResponse(b"one", replayed=True)] * 3
    assert unwanted.runs == 0
    assert two.events == {"join": 3}


async def test_a_twin_takes_over_once_the_other_fails(one: ClaimProcess, two: ClaimProcess) -> None:
    work = CountedWork(ZeroDivisionError(), go=False)
    first = one.begin(work)
    await work.started.wait()
    twin = two.begin(CountedWork(b"two"))
    assert not await ends_soon(twin)
    work.go.set()
    with pytest.raises(ZeroDivisionError):
        await first
    assert await twin == CallResponse(b"two", replayed=False)


async def test_a_twin_is_told_shortly_before_its_deadline(
    one: ClaimProcess, two: ClaimProcess
) -> None:
    work = CountedWork(b"one", go=False)
    first = one.begin(work)
    await work.started.wait()
    before = asyncio.get_running_loop().time()
    error = await refusal(two.begin(CountedWork(b"two"), seconds=0.5))
    assert asyncio.get_running_loop().time() - before > 0.4
    assert error.code is grpc.StatusCode.ABORTED
    assert error.reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
    assert error.retry_after is not None
    assert 0 < error.retry_after <= LEASE
    work.go.set()
    await first


async def test_a_twin_that_joined_one_with_less_time_goes_on_waiting(
    one: ClaimProcess, two: ClaimProcess
) -> None:
    work = CountedWork(b"one", go=False)
    first = one.begin(work)
    await work.started.wait()
    hasty, patient = two.begin(CountedWork(b"two"), seconds=0.3), two.begin(CountedWork(b"three"))
    assert (await refusal(hasty)).reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
    work.go.set()
    assert await patient == CallResponse(b"one", replayed=True)
    await first


async def test_another_request_is_refused_at_once(one: ClaimProcess, two: ClaimProcess) -> None:
    work = CountedWork(b"one", go=False)
    first = one.begin(work)
    await work.started.wait()
    asked = two.single_flight.answer(KEY, OTHER_PRINT, 10.0, CountedWork(b"two"))
    error = await refusal(asyncio.wait_for(asked, 2))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    assert two.events == {"mismatch": 1}
    # Nor does it wait with a twin that waits for the first.
    twin = two.begin(CountedWork(b"two"))
    await until(
        lambda: KEY in two.single_flight._flights and two.single_flight._flights[KEY].bound.is_set()
    )
    asked = two.single_flight.answer(KEY, OTHER_PRINT, 10.0, CountedWork(b"two"))
    assert (await refusal(asyncio.wait_for(asked, 2))).reason == "IDEMPOTENCY_KEY_REUSED"
    work.go.set()
    assert await first == CallResponse(b"one", replayed=False)
    assert await twin == CallResponse(b"one", replayed=True)


async def test_the_claim_of_one_that_died_is_taken_over_when_its_lease_ends(
    one: ClaimProcess, two: ClaimProcess
) -> None:
    work = CountedWork(b"one", go=False)
    zombie = one.begin(work)
    await work.started.wait()
    one.stop_dead()
    before = asyncio.get_running_loop().time()
    assert await two.begin(CountedWork(b"two")) == CallResponse(b"two", replayed=False)
    assert asyncio.get_running_loop().time() - before < LEASE + 2.0
    # The zombie comes back: what it made is no answer, neither for its caller nor for others.
    one.store.let_go.set()
    work.go.set()
    assert await zombie == CallResponse(b"two", replayed=True)
    assert one.events == {"lost_lease": 1, "join": 1}
    assert await one.begin(CountedWork(b"three")) == CallResponse(b"two", replayed=True)


class LostClaim:
    """A call at `one` that was stopped, and whose claim `two` has taken over."""

    def __init__(self, one: ClaimProcess, two: ClaimProcess, *ends: bytes | BaseException) -> None:
        self.one, self.two = one, two
        self.work, self.heir = CountedWork(*ends, go=False), CountedWork(b"two", go=False)
        self.calls: list[asyncio.Task[CallResponse]] = []

    async def happen(self, *, keep: bool = True, twins: int = 0, heir_keeps: bool = True) -> None:
        ask = self.one.single_flight.answer(KEY, PRINT, 10.0, self.work, keep=keep)
        self.calls.append(asyncio.ensure_future(ask))
        await self.work.started.wait()
        self.calls += [self.one.begin(CountedWork(b"unwanted")) for _ in range(twins)]
        self.one.stop_dead()
        ask = self.two.single_flight.answer(KEY, PRINT, 10.0, self.heir, keep=heir_keeps)
        self.successor = asyncio.ensure_future(ask)
        await self.heir.started.wait()
        self.one.store.let_go.set()
        self.work.go.set()


async def test_item_17_a_lost_lease_gives_all_its_callers_the_other_s_answer(
    one: ClaimProcess, two: ClaimProcess
) -> None:
    lost = LostClaim(one, two, b"one")
    await lost.happen(twins=2)
    for call in lost.calls:
        assert not await ends_soon(call)  # they wait for the other, which is still at work
    lost.heir.go.set()
    assert await lost.successor == CallResponse(b"two", replayed=False)
    assert await asyncio.gather(*lost.calls) == [CallResponse(b"two", replayed=True)] * 3
    assert one.events["lost_lease"] == 1


@pytest.mark.parametrize(
    "end",
    [
        b"one",
        invalid("images", "are all bad"),
        SightlineError(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "gone"),
    ],
)
@pytest.mark.parametrize("keep", [True, False])
async def test_item_17_whatever_a_lost_lease_ends_with_is_no_answer(
    one: ClaimProcess, two: ClaimProcess, end: bytes | BaseException, keep: bool
) -> None:
    lost = LostClaim(one, two, end)
    await lost.happen(keep=keep)
    lost.heir.go.set()
    assert await lost.calls[0] == CallResponse(b"two", replayed=True)
    assert await lost.successor == CallResponse(b"two", replayed=False)


async def test_item_17_a_failure_that_may_pass_stays_a_failure(
    one: ClaimProcess, two: ClaimProcess
) -> None:
    failure = SightlineError(grpc.StatusCode.UNAVAILABLE, "X", "x")
    lost = LostClaim(one, two, failure)
    await lost.happen()
    assert await refusal(lost.calls[0]) is failure
    lost.heir.go.set()
    assert await lost.successor == CallResponse(b"two", replayed=False)


@pytest.mark.parametrize("heir_keeps", [True, False])
async def test_item_17_a_lost_lease_without_an_heir_s_answer_is_aborted(
    one: ClaimProcess, two: ClaimProcess, heir_keeps: bool
) -> None:
    lost = LostClaim(one, two, b"one")
    await lost.happen(heir_keeps=heir_keeps)
    if heir_keeps:
        lost.heir.ends = [SightlineError(grpc.StatusCode.UNAVAILABLE, "X", "x")]
    lost.successor.cancel() if heir_keeps else lost.heir.go.set()
    error = await refusal(lost.calls[0])
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "IDEMPOTENCY_TWIN_IN_FLIGHT")
    assert error.retry_after is not None
    assert await one.begin(CountedWork(b"three")) == CallResponse(b"three", replayed=False)


async def test_item_17_without_the_store_a_lost_lease_is_no_answer(
    one: ClaimProcess, third: SqliteStore
) -> None:
    work = CountedWork(b"one", go=False)
    zombie = one.begin(work)
    await work.started.wait()
    one.store._database.execute("PRAGMA busy_timeout = 1")
    with third.transaction():  # a transaction that lasts: nothing can be recorded, nor renewed
        await asyncio.sleep(1.25 * LEASE)
        work.go.set()
        assert (await refusal(zombie)).reason == "IDEMPOTENCY_STORE_UNAVAILABLE"


async def test_item_17_an_answer_within_its_lease_needs_no_record(
    one: ClaimProcess, third: SqliteStore
) -> None:
    work = CountedWork(b"one", go=False)
    call = one.begin(work)
    await work.started.wait()
    one.store._database.execute("PRAGMA busy_timeout = 1")
    with third.transaction():
        work.go.set()
        assert await call == CallResponse(b"one", replayed=False)


@pytest.mark.parametrize("owner_s", [-7200.0, 7200.0, 1e9])
async def test_item_18_a_lease_lasts_as_long_whatever_the_owner_s_clock_says(
    one: ClaimProcess, third: SqliteStore, owner_s: float
) -> None:
    now = time.time() + owner_s
    claimed = third.claim(KEY, fingerprint=PRINT, owner=b"dead", now=now, until=now + LEASE)
    assert claimed is None
    before = asyncio.get_running_loop().time()
    assert await one.begin(CountedWork(b"one")) == CallResponse(b"one", replayed=False)
    assert 0.9 * LEASE < asyncio.get_running_loop().time() - before < LEASE + 1.0


async def test_item_18_a_lease_is_watched_before_anybody_wants_its_key(
    one: ClaimProcess, third: SqliteStore
) -> None:
    third.claim(KEY, fingerprint=PRINT, owner=b"dead", now=0, until=9e9)
    await asyncio.sleep(1.5 * LEASE)
    before = asyncio.get_running_loop().time()
    assert await one.begin(CountedWork(b"one")) == CallResponse(b"one", replayed=False)
    assert asyncio.get_running_loop().time() - before < 0.5 * LEASE


async def test_a_claim_that_was_lost_is_not_renewed(one: ClaimProcess, two: ClaimProcess) -> None:
    lost = LostClaim(one, two, b"one")
    await lost.happen()
    await until(lambda: one.single_flight._worker._leases == {})
    lost.heir.go.set()
    await lost.successor
    await lost.calls[0]
