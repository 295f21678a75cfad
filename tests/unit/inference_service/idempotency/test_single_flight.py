"""Calls with a key: executed once, joined, replayed, released. On a real store."""

import asyncio
import contextvars
from collections import Counter

import grpc
import pytest

from inference_service.idempotency.single_flight import CallResponse, SingleFlight
from servicekit.errors import SightlineError, invalid
from tests.unit.inference_service.idempotency.flights import (
    KEEP,
    KEY,
    OTHER_PRINT,
    PRINT,
    StoreClock,
    ask,
    begin,
    begun,
    refusal,
)
from tests.unit.inference_service.idempotency.flights import clock as clock
from tests.unit.inference_service.idempotency.flights import events as events
from tests.unit.inference_service.idempotency.flights import single_flight as single_flight
from tests.unit.inference_service.idempotency.flights import store as store
from tests.unit.inference_service.idempotency.work import CountedWork, HeldStore, ends_soon, until


async def joined(
    single_flight: SingleFlight, work: CountedWork, seconds: float = 5.0
) -> "asyncio.Task[CallResponse]":
    """Return a call that waits for the work of another one."""
    flight = single_flight._flights[KEY]
    before = flight.waiting
    call = begin(single_flight, work, seconds)
    await until(lambda: flight.waiting > before)
    return call


async def test_the_second_call_gets_the_first_one_s_answer(
    single_flight: SingleFlight, events: "Counter[str]"
) -> None:
    work = CountedWork(b"one", b"two")
    assert await ask(single_flight, work) == CallResponse(b"one", replayed=False)
    assert await ask(single_flight, work) == CallResponse(b"one", replayed=True)
    assert work.runs == 1
    assert events == {"hit": 1}


async def test_an_answer_is_forgotten_after_its_time(
    single_flight: SingleFlight, clock: StoreClock
) -> None:
    work = CountedWork(b"one", b"two")
    await ask(single_flight, work)
    clock.now += KEEP - 0.001
    assert (await ask(single_flight, work)).replayed
    clock.now += 0.001
    assert await ask(single_flight, work) == CallResponse(b"two", replayed=False)


async def test_a_key_is_bound_to_its_request(
    single_flight: SingleFlight, events: "Counter[str]"
) -> None:
    await ask(single_flight, CountedWork(b"one"))
    other = CountedWork(b"two")
    error = await refusal(ask(single_flight, other, OTHER_PRINT))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    assert other.runs == 0
    assert events == {"mismatch": 1}


async def test_a_key_in_flight_is_bound_too_and_refused_at_once(
    single_flight: SingleFlight, events: "Counter[str]"
) -> None:
    work = CountedWork(b"one", go=False)
    first = await begun(single_flight, work)
    with pytest.raises(SightlineError, match="used with another"):
        await asyncio.wait_for(ask(single_flight, CountedWork(b"two"), OTHER_PRINT), 1)
    assert events == {"mismatch": 1}
    work.go.set()
    assert (await first).payload == b"one"


async def test_a_call_that_came_first_but_does_not_get_the_key_stands_in_nobody_s_way(
    single_flight: SingleFlight, store: HeldStore
) -> None:
    await ask(single_flight, CountedWork(b"one"))
    store.hold()
    wrong = asyncio.ensure_future(ask(single_flight, CountedWork(b"two"), OTHER_PRINT))
    await until(lambda: KEY in single_flight._flights)
    right = begin(single_flight, CountedWork(b"three"))
    assert not await ends_soon(right)
    store.let_go.set()
    assert (await refusal(wrong)).reason == "IDEMPOTENCY_KEY_REUSED"
    assert await right == CallResponse(b"one", replayed=True)


async def test_a_claim_that_takes_too_long_is_not_waited_for_by_another_request(
    single_flight: SingleFlight, store: HeldStore
) -> None:
    store.hold()
    first = begin(single_flight, CountedWork(b"one"))
    await until(lambda: KEY in single_flight._flights)
    error = await refusal(ask(single_flight, CountedWork(b"two"), OTHER_PRINT, seconds=0.05))
    assert error.reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
    store.let_go.set()
    assert await first == CallResponse(b"one")


async def test_twins_join(single_flight: SingleFlight, events: "Counter[str]") -> None:
    work = CountedWork(b"one", b"two", go=False)
    calls = [await begun(single_flight, work)] + [
        await joined(single_flight, work) for _ in range(4)
    ]
    work.go.set()
    replies = await asyncio.gather(*calls)
    assert {reply.payload for reply in replies} == {b"one"}
    assert [reply.replayed for reply in replies] == [False, True, True, True, True]
    assert work.runs == 1
    assert events == {"join": 4}


OTHER_FAILURES = [
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
    # They hang on what the server has: a model or an upload may be there the next time.
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
]


@pytest.mark.parametrize("code", OTHER_FAILURES)
async def test_failures_that_may_pass_are_not_kept(
    single_flight: SingleFlight, code: grpc.StatusCode
) -> None:
    work = CountedWork(SightlineError(code, "X", "x"), b"two")
    assert (await refusal(ask(single_flight, work))).code is code
    assert await ask(single_flight, work) == CallResponse(b"two", replayed=False)


async def test_unforeseen_failures_are_not_kept(single_flight: SingleFlight) -> None:
    work = CountedWork(ZeroDivisionError(), b"two")
    with pytest.raises(ZeroDivisionError):
        await ask(single_flight, work)
    assert (await ask(single_flight, work)).payload == b"two"


@pytest.mark.parametrize("end", [b"one", invalid("images", "are all bad")])
async def test_what_is_not_to_be_kept_is_for_those_who_wait(
    single_flight: SingleFlight, end: bytes | SightlineError
) -> None:
    work = CountedWork(end, b"two", go=False)
    first = asyncio.ensure_future(single_flight.answer(KEY, PRINT, 5.0, work, keep=False))
    await work.started.wait()
    calls = [first, await joined(single_flight, work)]
    work.go.set()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert ends == (
        [CallResponse(b"one"), CallResponse(b"one", True)] if end == b"one" else [end, end]
    )
    assert await ask(single_flight, work) == CallResponse(b"two", replayed=False)


async def test_mistakes_of_the_caller_are_kept_with_their_details(
    single_flight: SingleFlight, events: "Counter[str]"
) -> None:
    work = CountedWork(invalid("images[0].data", "is corrupt", reason="IMAGE_CORRUPT"), b"two")
    first = await refusal(ask(single_flight, work))
    second = await refusal(ask(single_flight, work))
    assert work.runs == 1
    for name in ("code", "reason", "message", "violations"):
        assert getattr(second, name) == getattr(first, name)
    assert events == {"hit": 1}


@pytest.mark.parametrize("failure", [invalid("x", "is bad"), ZeroDivisionError()])
async def test_twins_share_a_failure_that_is_theirs_as_well(
    single_flight: SingleFlight, failure: Exception
) -> None:
    work = CountedWork(failure, b"two", go=False)
    calls = [
        await begun(single_flight, work),
        await joined(single_flight, work),
        await joined(single_flight, work),
    ]
    work.go.set()
    assert await asyncio.gather(*calls, return_exceptions=True) == [failure] * 3
    assert work.runs == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED])
async def test_twins_with_time_left_do_anew_what_ran_out_of_the_first_one_s_time(
    single_flight: SingleFlight, code: grpc.StatusCode
) -> None:
    work = CountedWork(SightlineError(code, "X", "x"), b"two", go=False)
    first, second = await begun(single_flight, work), CountedWork(b"mine", b"not again")
    twins = [await joined(single_flight, second) for _ in range(3)]
    work.go.set()
    assert (await refusal(first)).code is code
    replies = await asyncio.gather(*twins)
    assert {reply.payload for reply in replies} == {b"mine"}
    assert sorted(reply.replayed for reply in replies) == [False, True, True]
    assert second.runs == 1


async def test_work_that_cancels_itself_is_no_answer_for_its_twin(
    single_flight: SingleFlight,
) -> None:
    work = CountedWork(asyncio.CancelledError(), go=False)
    first, twin = (
        await begun(single_flight, work),
        await joined(single_flight, CountedWork(b"mine")),
    )
    work.go.set()
    assert (await refusal(first)).code is grpc.StatusCode.CANCELLED
    assert await twin == CallResponse(b"mine", replayed=False)


async def test_a_caller_that_gives_up_leaves_its_work_to_its_twin(
    single_flight: SingleFlight,
) -> None:
    work = CountedWork(b"one", b"two", go=False)
    first, twin = await begun(single_flight, work), await joined(single_flight, work)
    first.cancel()
    assert await ends_soon(first)
    work.go.set()
    assert await asyncio.wait_for(twin, 5) == CallResponse(b"one", replayed=True)
    assert first.cancelled()
    assert (work.runs, work.cancelled) == (1, 0)
    assert await ask(single_flight, work) == CallResponse(b"one", replayed=True)


async def test_a_twin_that_gives_up_does_not_touch_the_first(single_flight: SingleFlight) -> None:
    work = CountedWork(b"one", go=False)
    first, twin = await begun(single_flight, work), await joined(single_flight, work)
    twin.cancel()
    assert await ends_soon(twin)
    work.go.set()
    assert await first == CallResponse(b"one", replayed=False)
    assert single_flight._flights == {}


async def test_work_that_nobody_waits_for_is_cancelled_and_its_key_is_free(
    single_flight: SingleFlight,
) -> None:
    work = CountedWork(b"one", go=False)
    calls = [await begun(single_flight, work), await joined(single_flight, work)]
    for call in calls:
        assert work.cancelled == 0
        call.cancel()
        assert await ends_soon(call)
    await until(lambda: work.cancelled == 1)
    assert await asyncio.wait_for(ask(single_flight, CountedWork(b"two")), 1) == CallResponse(
        b"two", replayed=False
    )


async def test_work_that_is_being_cancelled_is_no_answer_for_who_joins_it(
    single_flight: SingleFlight,
) -> None:
    unwinding = asyncio.Event()
    started = asyncio.Event()

    async def slow_to_notice() -> bytes:
        started.set()
        try:
            await asyncio.sleep(10)
        finally:
            await unwinding.wait()
        return b"never"

    first = begin(single_flight, slow_to_notice)
    await started.wait()
    first.cancel()
    assert await ends_soon(first)
    second = begin(single_flight, CountedWork(b"two"))
    assert not await ends_soon(second)  # its claim is not given up yet
    unwinding.set()
    assert await second == CallResponse(b"two", replayed=False)


async def test_a_twin_waits_until_shortly_before_its_own_deadline(
    single_flight: SingleFlight,
) -> None:
    work = CountedWork(b"one", go=False)
    first = await begun(single_flight, work)
    before = asyncio.get_running_loop().time()
    error = await refusal(ask(single_flight, work, seconds=0.3))
    assert asyncio.get_running_loop().time() - before > 0.2
    assert error.code is grpc.StatusCode.ABORTED
    assert error.reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
    assert error.retry_after is not None
    work.go.set()
    assert (await first).payload == b"one"


async def test_work_runs_in_the_context_of_the_call_that_began_it(
    single_flight: SingleFlight,
) -> None:
    who = contextvars.ContextVar("who", default="nobody")
    going = asyncio.Event()

    async def work() -> bytes:
        await going.wait()
        return who.get().encode()

    async def call(name: str) -> CallResponse:
        who.set(name)
        return await ask(single_flight, work)

    first = asyncio.ensure_future(call("first"))
    await until(lambda: KEY in single_flight._flights)
    twin = asyncio.ensure_future(call("twin"))
    await until(lambda: single_flight._flights[KEY].waiting == 2)
    going.set()
    assert (await first).payload == (await twin).payload == b"first"


async def test_a_caller_that_gives_up_while_claiming_leaves_the_key_free(
    single_flight: SingleFlight, store: HeldStore
) -> None:
    store.hold()
    first = begin(single_flight, CountedWork(b"one"))
    await until(lambda: KEY in single_flight._flights)
    await asyncio.sleep(0)  # the claim is on its way to the store's thread
    first.cancel()
    store.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(ask(single_flight, CountedWork(b"two")), 1) == CallResponse(
        b"two", replayed=False
    )


async def test_a_caller_that_gives_up_while_its_answer_is_recorded_finds_it_later(
    single_flight: SingleFlight, store: HeldStore
) -> None:
    work = CountedWork(b"one", b"two", go=False)
    first = await begun(single_flight, work)
    store.hold()
    work.go.set()
    assert not await ends_soon(first)  # the answer waits for the store's thread
    first.cancel()
    assert await ends_soon(first)
    store.let_go.set()
    assert await ask(single_flight, work) == CallResponse(b"one", replayed=True)
