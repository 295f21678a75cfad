"""The worker threads: real threads, and deadlines that work can miss."""

import asyncio
import gc
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from numpy.typing import NDArray

from inference_service.serving.admission import Admission
from inference_service.serving.workers import Workers
from servicekit.errors import SightlineError, invalid
from tests.unit.inference_service.serving.doubler import (
    Doubler,
    Heard,
    Number,
    busy,
    results,
    soon,
    until,
)


async def test_results_come_in_order_from_other_threads(workers: Workers, model: Doubler) -> None:
    work = [Number(n) for n in range(3)]
    ran = await workers.run(work, model, soon())
    assert results(ran) == [[0], [2], [4]]
    assert threading.get_ident() not in {each.threads[0] for each in work}
    assert ran[2].waited > ran[0].waited >= 0


async def test_a_worker_goes_on_while_the_loop_is_busy(workers: Workers, model: Doubler) -> None:
    first = await busy(workers, model)
    rest = [asyncio.create_task(workers.run([Number(n)], model, soon())) for n in (1, 2)]
    await until(lambda: len(workers._members) == 3)
    model.go.set()
    deadline = time.monotonic() + 10
    while len(model.batches) < 3:  # nothing is awaited: the loop does nothing else
        assert time.monotonic() < deadline
        time.sleep(0.001)  # noqa: ASYNC251 - that is the point
    assert [results(await call) for call in (first, *rest)] == [[[0]], [[2]], [[4]]]


async def test_stages_are_timed(workers: Workers, model: Doubler) -> None:
    slow = Number(1, on_prepare=lambda: time.sleep(0.2), on_finish=lambda: time.sleep(0.3))
    (ran,) = await workers.run([slow], model, soon())
    assert ran.decode >= 0.2
    assert ran.post >= 0.3
    assert ran.infer < 0.2  # neither of them is in it
    assert ran.batch == 1


async def test_runs_teach_the_estimates(workers: Workers, model: Doubler) -> None:
    await workers.run([Number(1, on_prepare=lambda: time.sleep(0.02))], model, soon())
    assert model.lane.estimates.mean(1, time.monotonic()) >= 0.02


async def test_at_most_so_many_at_a_time(heard: Heard, model: Doubler) -> None:
    workers = Workers(Admission(workers=2, queue_size=8), heard)
    now, peak, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal now, peak
        with lock:
            now += 1
            peak = max(peak, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    await workers.run([Number(1, on_prepare=work) for _ in range(8)], model, soon())
    assert peak == 2
    workers.close()


async def test_bad_input_fails_alone(workers: Workers, model: Doubler) -> None:
    error = invalid("images[1].data", "is corrupt")
    ran = await workers.run([Number(1), Number(2, error=error), Number(3)], model, soon())
    assert results(ran) == [[2], error, [6]]


async def test_any_other_failure_fails_the_request_and_stops_the_rest(
    workers: Workers, model: Doubler, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.fails_on = 7.0
    wanted = []
    submit = workers._pool.submit

    def seen(run: Any, member: Any, loop: Any) -> Any:
        wanted.append(member.wanted(time.monotonic()))
        return submit(run, member, loop)

    monkeypatch.setattr(workers._pool, "submit", seen)
    with pytest.raises(SightlineError, match="MODEL_RUN_FAILED"):
        await workers.run([Number(7), Number(1), Number(2), Number(3)], model, soon())
    assert wanted[0]
    assert not any(wanted[1:])  # what is taken before it is withdrawn costs nothing
    assert results(await workers.run([Number(9)], model, soon())) == [[18]]
    assert model.batches == [[7], [9]]


async def test_an_unforeseen_error_is_the_caller_s(workers: Workers, model: Doubler) -> None:
    for broken in (Number(1, error=ZeroDivisionError()), Number(1, on_finish=lambda: 1 / 0)):
        with pytest.raises(ZeroDivisionError):
            await workers.run([broken], model, soon())


async def test_a_caller_that_gives_up_takes_its_place_in_the_queue_along(
    workers: Workers, model: Doubler, heard: Heard
) -> None:
    first = await busy(workers, model)
    second = asyncio.create_task(workers.run([Number(2)], model, soon()))
    third = asyncio.create_task(workers.run([Number(3)], model, soon()))
    await until(lambda: len(workers._members) == 3)
    second.cancel()
    await until(second.done)
    model.go.set()
    await first
    assert results(await third) == [[6]]
    assert model.batches == [[0], [3]]
    assert heard.lost == {"cancelled": 1}


async def test_who_gives_up_while_it_is_prepared_costs_no_run(
    workers: Workers, model: Doubler, heard: Heard
) -> None:
    began, go = threading.Event(), threading.Event()

    def prepare() -> None:
        began.set()
        assert go.wait(10)

    call = asyncio.create_task(workers.run([Number(1, on_prepare=prepare)], model, soon()))
    await until(began.is_set)
    call.cancel()
    await until(call.done)
    go.set()
    await workers.run([Number(2)], model, soon())
    assert model.batches == [[2]]
    assert heard.lost == {"cancelled": 1}


async def test_who_is_late_when_it_is_prepared_costs_no_run(
    workers: Workers, model: Doubler, heard: Heard
) -> None:
    deadline = soon(0.02)

    def prepare() -> None:
        while time.monotonic() < deadline:
            time.sleep(0.001)

    with pytest.raises(SightlineError) as caught:
        await workers.run([Number(1, on_prepare=prepare)], model, deadline)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert model.batches == []
    assert heard.lost == {"run": 1}


async def test_an_answer_that_is_late_is_none(
    workers: Workers, model: Doubler, heard: Heard
) -> None:
    deadline = soon(0.02)

    def finish() -> None:
        while time.monotonic() < deadline:
            time.sleep(0.001)

    with pytest.raises(SightlineError, match="DEADLINE_EXCEEDED"):
        await workers.run([Number(1, on_finish=finish)], model, deadline)
    assert heard.lost == {"run": 1}
    assert model.lane.estimates.mean(1, time.monotonic()) >= 0.01  # but teaches


@pytest.mark.parametrize(("left", "lost"), [(0.009, {"run": 1}), (0.011, {})])
async def test_an_answer_that_would_arrive_late_is_none(
    model: Doubler, heard: Heard, left: float, lost: dict[str, int]
) -> None:
    now = [100.0]
    workers = Workers(Admission(workers=1, queue_size=4), heard, clock=lambda: now[0])

    def finish() -> None:
        now[0] = 101.0 - left

    call = workers.run([Number(1, on_finish=finish)], model, 101.0)
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(outcome, SightlineError) == bool(lost)
    assert heard.lost == lost
    workers.close()


async def test_what_waited_past_its_deadline_is_not_run(
    workers: Workers, model: Doubler, heard: Heard
) -> None:
    first = await busy(workers, model)
    late = asyncio.create_task(workers.run([Number(2)], model, deadline := soon(0.02)))
    await until(lambda: time.monotonic() > deadline)
    model.go.set()
    with pytest.raises(SightlineError, match="DEADLINE_EXCEEDED"):
        await late
    await first
    assert model.batches == [[0]]
    assert heard.lost == {"queue": 1}


async def test_a_full_queue_refuses_at_once(workers: Workers, model: Doubler) -> None:
    first = await busy(workers, model)
    waiting = asyncio.create_task(workers.run([Number(1)] * 4, model, soon()))
    await until(lambda: len(workers._members) == 5)
    with pytest.raises(SightlineError, match="QUEUE_FULL"):
        await workers.run([Number(1)], model, soon())
    model.go.set()
    await asyncio.gather(first, waiting)


async def test_what_came_of_it_says_how_long_it_waited(workers: Workers, model: Doubler) -> None:
    first = await busy(workers, model)
    second = asyncio.create_task(workers.run([Number(1)], model, soon()))
    await until(lambda: len(workers._members) == 2)
    begun = time.monotonic()
    await until(lambda: time.monotonic() > begun + 0.05)
    model.go.set()
    (ran,) = await second
    assert ran.waited >= 0.05
    await first


async def test_what_is_given_up_may_be_asked_elsewhere(workers: Workers, model: Doubler) -> None:
    running = await busy(workers, model)
    waiting = asyncio.create_task(workers.run([Number(1)] * 2, model, soon()))
    await until(lambda: len(workers._members) == 3)
    workers.give_up()
    late = workers.run([Number(1)], model, soon())
    for call in (running, waiting, late):
        with pytest.raises(SightlineError) as caught:
            await call
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.reason == "SHUTTING_DOWN"
    model.go.set()
    await until(lambda: not workers._members)


@dataclass(eq=False)
class Refusing(Number):
    """Work that finds fault with its own input when it looks at it."""

    def prepare(self) -> NDArray[Any]:
        raise invalid("images[0].data", "is corrupt")


async def test_a_member_that_was_refused_keeps_nothing_in_memory(
    workers: Workers, model: Doubler
) -> None:
    gc.collect()
    gc.disable()  # a circle would be found by the collector only, much later
    try:
        work = Refusing(1)
        gone = weakref.ref(work)
        (ran,) = await workers.run([work], model, time.monotonic() + 30)
        assert isinstance(ran.result, SightlineError)
        del work, ran
        await until(lambda: gone() is None)
    finally:
        gc.enable()
