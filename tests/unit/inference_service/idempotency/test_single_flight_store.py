"""The single flight, its store, and what is kept in memory."""

import asyncio
from collections import Counter

import grpc
import pytest

from inference_service.idempotency.single_flight import CallResponse, SingleFlight
from inference_service.idempotency.store import ClaimOutcome
from tests.unit.inference_service.idempotency.flights import (
    KEEP,
    KEY,
    PRINT,
    StoreClock,
    ask,
    begun,
    refusal,
)
from tests.unit.inference_service.idempotency.flights import clock as clock
from tests.unit.inference_service.idempotency.flights import events as events
from tests.unit.inference_service.idempotency.flights import single_flight as single_flight
from tests.unit.inference_service.idempotency.flights import store as store
from tests.unit.inference_service.idempotency.work import CountedWork, HeldStore, ends_soon, until


async def test_without_its_store_nothing_is_computed(
    single_flight: SingleFlight, store: HeldStore
) -> None:
    await ask(single_flight, CountedWork(b"one"))
    store._database.execute("ALTER TABLE claims RENAME TO away")
    work = CountedWork(b"one")
    error = await refusal(single_flight.answer(b"n" * 32, PRINT, 5.0, work))
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == "IDEMPOTENCY_STORE_UNAVAILABLE"
    assert work.runs == 0


async def test_an_answer_that_cannot_be_recorded_is_given_all_the_same(
    single_flight: SingleFlight, store: HeldStore, caplog: pytest.LogCaptureFixture
) -> None:
    work = CountedWork(b"one", go=False)
    call = await begun(single_flight, work)
    store._database.execute("DROP TABLE claims")
    work.go.set()
    assert await call == CallResponse(b"one", replayed=False)
    assert "cannot record" in caplog.text


async def test_a_release_that_fails_is_logged(
    store: HeldStore, caplog: pytest.LogCaptureFixture
) -> None:
    single_flight = SingleFlight(store, KEEP)
    work = CountedWork(ZeroDivisionError(), go=False)
    call = await begun(single_flight, work)
    store._database.execute("DROP TABLE claims")
    work.go.set()
    with pytest.raises(ZeroDivisionError):
        await call
    await single_flight.close()
    assert "cannot release" in caplog.text


async def test_closing_ends_work_and_waits_for_what_was_asked_for(
    store: HeldStore, clock: StoreClock
) -> None:
    single_flight = SingleFlight(store, KEEP, clock)
    work = CountedWork(b"one", go=False)
    call = await begun(single_flight, work)
    store.hold()
    closing = asyncio.ensure_future(single_flight.close())
    await until(lambda: work.cancelled == 1)
    assert not await ends_soon(closing)  # the key is yet to be released
    store.let_go.set()
    await closing
    assert (await refusal(call)).code is grpc.StatusCode.CANCELLED
    error = await refusal(ask(single_flight, work))
    assert error.reason == "IDEMPOTENCY_STORE_UNAVAILABLE"


async def test_memory_does_not_grow_with_keys(single_flight: SingleFlight) -> None:
    for number in range(50):
        await single_flight.answer(number.to_bytes(32), PRINT, 5.0, CountedWork(b"one"))
    assert single_flight._flights == {}
    assert single_flight._worker._leases == {}


async def test_an_outcome_of_another_process_is_replayed(
    single_flight: SingleFlight, store: HeldStore, events: "Counter[str]"
) -> None:
    await single_flight.answer(b"o" * 32, PRINT, 5.0, CountedWork(b"other"))
    now = store.time()
    store.claim(KEY, fingerprint=PRINT, owner=b"x", now=now, until=now + 9)
    store.settle(KEY, owner=b"x", outcome=ClaimOutcome(True, b"theirs"), until=now + 9)
    assert await ask(single_flight, CountedWork(b"one")) == CallResponse(b"theirs", replayed=True)
    assert events == {"hit": 1}
