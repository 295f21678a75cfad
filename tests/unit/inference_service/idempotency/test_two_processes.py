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

pytestmark = pytest.mark.slow  # leases of seconds end in it

KEY, PRINT, OTHER_PRINT = b"k" * 32, b"f" * 32, b"g" * 32
LEASE = 2.0  # renewed four times as often, whatever else the machine does


class ClaimProcess:
    """The parts of one server process: a connection of its own on the shared file."""

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
async def first_process(tmp_path: Path) -> AsyncIterator[ClaimProcess]:
    created = ClaimProcess(tmp_path / "claims.sqlite")
    yield created
    created.store.let_go.set()
    await created.single_flight.close()


@pytest.fixture
async def second_process(tmp_path: Path) -> AsyncIterator[ClaimProcess]:
    created = ClaimProcess(tmp_path / "claims.sqlite")
    yield created
    await created.single_flight.close()


@pytest.fixture
def third(first_process: ClaimProcess, tmp_path: Path) -> Iterator[SqliteStore]:
    """Open a connection on the same file that no claim worker uses."""
    with closing(SqliteStore(str(tmp_path / "claims.sqlite"))) as created:
        yield created


async def refusal(call: Awaitable[CallResponse]) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        await call
    return caught.value


async def test_a_twin_waits_for_the_answer_of_the_other(
    first_process: ClaimProcess, second_process: ClaimProcess
) -> None:
    work, unwanted = CountedWork(b"one", go=False), CountedWork(b"two")
    first = first_process.begin(work)
    await work.started.wait()
    twins = [second_process.begin(unwanted) for _ in range(3)]
    # It goes on for longer than a lease, which is renewed meanwhile.
    await asyncio.sleep(1.25 * LEASE)
    work.go.set()
    assert await first == CallResponse(b"one", replayed=False)
    assert await asyncio.gather(*twins) == [CallResponse(b"one", replayed=True)] * 3
    assert unwanted.runs == 0
    assert second_process.events == {"join": 3}


async def test_a_twin_takes_over_once_the_other_fails(
    first_process: ClaimProcess, second_process: ClaimProcess
) -> None:
    work = CountedWork(ZeroDivisionError(), go=False)
    first = first_process.begin(work)
    await work.started.wait()
    twin = second_process.begin(CountedWork(b"two"))
    assert not await ends_soon(twin)
    work.go.set()
    with pytest.raises(ZeroDivisionError):
        await first
    assert await twin == CallResponse(b"two", replayed=False)


async def test_a_twin_is_told_shortly_before_its_deadline(
    first_process: ClaimProcess, second_process: ClaimProcess
) -> None:
    work = CountedWork(b"one", go=False)
    first = first_process.begin(work)
    await work.started.wait()
    before = asyncio.get_running_loop().time()
    error = await refusal(second_process.begin(CountedWork(b"two"), seconds=0.5))
    assert asyncio.get_running_loop().time() - before > 0.4
    assert error.code is grpc.StatusCode.ABORTED
    assert error.reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
    assert error.retry_after is not None
    assert 0 < error.retry_after <= LEASE
    work.go.set()
    await first


async def test_a_twin_that_joined_one_with_less_time_goes_on_waiting(
    first_process: ClaimProcess, second_process: ClaimProcess
) -> None:
    work = CountedWork(b"one", go=False)
    first = first_process.begin(work)
    await work.started.wait()
    hasty, patient = (
        second_process.begin(CountedWork(b"two"), seconds=0.3),
        second_process.begin(CountedWork(b"three")),
    )
    assert (await refusal(hasty)).reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
    work.go.set()
    assert await patient == CallResponse(b"one", replayed=True)
    await first


async def test_another_request_is_refused_at_once(
    first_process: ClaimProcess, second_process: ClaimProcess
) -> None:
    work = CountedWork(b"one", go=False)
    first = first_process.begin(work)
    await work.started.wait()
    call_of_other = second_process.single_flight.answer(KEY, OTHER_PRINT, 10.0, CountedWork(b"two"))
    error = await refusal(asyncio.wait_for(call_of_other, 2))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    assert second_process.events == {"mismatch": 1}
    # Nor does it wait with a twin that waits for the first.
    twin = second_process.begin(CountedWork(b"two"))
    await until(
        lambda: (
            KEY in second_process.single_flight._flights
            and second_process.single_flight._flights[KEY].bound.is_set()
        )
    )
    call_of_other = second_process.single_flight.answer(KEY, OTHER_PRINT, 10.0, CountedWork(b"two"))
    assert (await refusal(asyncio.wait_for(call_of_other, 2))).reason == "IDEMPOTENCY_KEY_REUSED"
    work.go.set()
    assert await first == CallResponse(b"one", replayed=False)
    assert await twin == CallResponse(b"one", replayed=True)


async def test_the_claim_of_one_that_died_is_taken_over_when_its_lease_ends(
    first_process: ClaimProcess, second_process: ClaimProcess
) -> None:
    work = CountedWork(b"one", go=False)
    zombie = first_process.begin(work)
    await work.started.wait()
    first_process.stop_dead()
    before = asyncio.get_running_loop().time()
    assert await second_process.begin(CountedWork(b"two")) == CallResponse(b"two", replayed=False)
    assert asyncio.get_running_loop().time() - before < LEASE + 2.0
    # The zombie comes back: what it made is no answer, neither for its caller nor for others.
    first_process.store.let_go.set()
    work.go.set()
    assert await zombie == CallResponse(b"two", replayed=True)
    assert first_process.events == {"lost_lease": 1, "join": 1}
    assert await first_process.begin(CountedWork(b"three")) == CallResponse(b"two", replayed=True)


class LostClaim:
    """A call at `one` that was stopped, and whose claim `two` has taken over."""

    def __init__(
        self,
        first_process: ClaimProcess,
        second_process: ClaimProcess,
        *ends: bytes | BaseException,
    ) -> None:
        self.first_process, self.second_process = first_process, second_process
        self.work, self.heir = CountedWork(*ends, go=False), CountedWork(b"two", go=False)
        self.calls: list[asyncio.Task[CallResponse]] = []

    async def happen(self, *, keep: bool = True, twins: int = 0, heir_keeps: bool = True) -> None:
        ask = self.first_process.single_flight.answer(KEY, PRINT, 10.0, self.work, keep=keep)
        self.calls.append(asyncio.ensure_future(ask))
        await self.work.started.wait()
        self.calls += [self.first_process.begin(CountedWork(b"unwanted")) for _ in range(twins)]
        self.first_process.stop_dead()
        ask = self.second_process.single_flight.answer(KEY, PRINT, 10.0, self.heir, keep=heir_keeps)
        self.successor = asyncio.ensure_future(ask)
        await self.heir.started.wait()
        self.first_process.store.let_go.set()
        self.work.go.set()


async def test_a_lost_lease_gives_all_its_callers_the_other_s_answer(
    first_process: ClaimProcess, second_process: ClaimProcess
) -> None:
    lost = LostClaim(first_process, second_process, b"one")
    await lost.happen(twins=2)
    for call in lost.calls:
        assert not await ends_soon(call)  # they wait for the other, which is still at work
    lost.heir.go.set()
    assert await lost.successor == CallResponse(b"two", replayed=False)
    assert await asyncio.gather(*lost.calls) == [CallResponse(b"two", replayed=True)] * 3
    assert first_process.events["lost_lease"] == 1


@pytest.mark.parametrize(
    "end",
    [
        b"one",
        invalid("images", "are all bad"),
        SightlineError(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "gone"),
    ],
)
@pytest.mark.parametrize("keep", [True, False])
async def test_whatever_a_lost_lease_ends_with_is_no_answer(
    first_process: ClaimProcess,
    second_process: ClaimProcess,
    end: bytes | BaseException,
    keep: bool,
) -> None:
    lost = LostClaim(first_process, second_process, end)
    await lost.happen(keep=keep)
    lost.heir.go.set()
    assert await lost.calls[0] == CallResponse(b"two", replayed=True)
    assert await lost.successor == CallResponse(b"two", replayed=False)


async def test_a_failure_that_may_pass_stays_a_failure(
    first_process: ClaimProcess, second_process: ClaimProcess
) -> None:
    failure = SightlineError(grpc.StatusCode.UNAVAILABLE, "X", "x")
    lost = LostClaim(first_process, second_process, failure)
    await lost.happen()
    assert await refusal(lost.calls[0]) is failure
    lost.heir.go.set()
    assert await lost.successor == CallResponse(b"two", replayed=False)


@pytest.mark.parametrize("heir_keeps", [True, False])
async def test_a_lost_lease_without_an_heir_s_answer_is_aborted(
    first_process: ClaimProcess, second_process: ClaimProcess, heir_keeps: bool
) -> None:
    lost = LostClaim(first_process, second_process, b"one")
    await lost.happen(heir_keeps=heir_keeps)
    if heir_keeps:
        lost.heir.ends = [SightlineError(grpc.StatusCode.UNAVAILABLE, "X", "x")]
    lost.successor.cancel() if heir_keeps else lost.heir.go.set()
    error = await refusal(lost.calls[0])
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "IDEMPOTENCY_TWIN_IN_FLIGHT")
    assert error.retry_after is not None
    assert await first_process.begin(CountedWork(b"three")) == CallResponse(
        b"three", replayed=False
    )


async def test_without_the_store_a_lost_lease_is_no_answer(
    first_process: ClaimProcess, third: SqliteStore
) -> None:
    work = CountedWork(b"one", go=False)
    zombie = first_process.begin(work)
    await work.started.wait()
    first_process.store._database.execute("PRAGMA busy_timeout = 1")
    with third.transaction():  # a transaction that lasts: nothing can be recorded, nor renewed
        await asyncio.sleep(1.25 * LEASE)
        work.go.set()
        assert (await refusal(zombie)).reason == "IDEMPOTENCY_STORE_UNAVAILABLE"


async def test_an_answer_within_its_lease_needs_no_record(
    first_process: ClaimProcess, third: SqliteStore
) -> None:
    work = CountedWork(b"one", go=False)
    call = first_process.begin(work)
    await work.started.wait()
    first_process.store._database.execute("PRAGMA busy_timeout = 1")
    with third.transaction():
        work.go.set()
        assert await call == CallResponse(b"one", replayed=False)


@pytest.mark.parametrize("owner_s", [-7200.0, 7200.0, 1e9])
async def test_a_lease_lasts_as_long_whatever_the_owner_s_clock_says(
    first_process: ClaimProcess, third: SqliteStore, owner_s: float
) -> None:
    now = time.time() + owner_s
    claimed = third.claim(KEY, fingerprint=PRINT, owner=b"dead", now=now, until=now + LEASE)
    assert claimed is None
    before = asyncio.get_running_loop().time()
    assert await first_process.begin(CountedWork(b"one")) == CallResponse(b"one", replayed=False)
    assert 0.9 * LEASE < asyncio.get_running_loop().time() - before < LEASE + 1.0


async def test_a_lease_is_watched_before_anybody_wants_its_key(
    first_process: ClaimProcess, third: SqliteStore
) -> None:
    third.claim(KEY, fingerprint=PRINT, owner=b"dead", now=0, until=9e9)
    await asyncio.sleep(1.5 * LEASE)
    before = asyncio.get_running_loop().time()
    assert await first_process.begin(CountedWork(b"one")) == CallResponse(b"one", replayed=False)
    assert asyncio.get_running_loop().time() - before < 0.5 * LEASE


async def test_a_claim_that_was_lost_is_not_renewed(
    first_process: ClaimProcess, second_process: ClaimProcess
) -> None:
    lost = LostClaim(first_process, second_process, b"one")
    await lost.happen()
    await until(lambda: first_process.single_flight._worker._leases == {})
    lost.heir.go.set()
    await lost.successor
    await lost.calls[0]
