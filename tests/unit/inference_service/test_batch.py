"""The worker threads: real threads, and a deadline that work can miss."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from inference_service.admission import Admission, Estimate
from inference_service.batch import Ran, UnwantedError, Wanted, Workers
from servicekit.errors import SightlineError, invalid


class Gate:
    """Work that waits until it is let through."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.began = threading.Event()
        self.wanted: Wanted | None = None

    def __call__(self, wanted: Wanted) -> str:
        self.wanted = wanted
        self.began.set()
        assert self.open.wait(10)
        return "through"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event for most conditions
            await asyncio.sleep(0.001)


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    made = Workers(Admission(workers=1, queue_size=4))
    yield made
    made.close()


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


async def test_results_come_in_order_from_other_threads(workers: Workers) -> None:
    work = [lambda _wanted, n=n: (n, threading.get_ident()) for n in range(3)]
    ran = await workers.run(work, Estimate(), soon())
    results = [one.result for one in ran]
    assert [result[0] for result in results] == [0, 1, 2]  # type: ignore[index]
    assert threading.get_ident() not in {result[1] for result in results}  # type: ignore[index]
    assert all(one.waited >= 0 for one in ran)
    assert ran[2].waited > ran[0].waited


async def test_runs_teach_the_estimate(workers: Workers) -> None:
    estimate = Estimate()
    await workers.run([lambda _wanted: time.sleep(0.02)], estimate, soon())
    assert estimate.mean(time.monotonic()) >= 0.02


async def test_at_most_so_many_at_a_time() -> None:
    workers = Workers(Admission(workers=2, queue_size=8))
    now, most, lock = 0, 0, threading.Lock()

    def work(_wanted: Wanted) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    await workers.run([work] * 8, Estimate(), soon())
    assert most == 2
    workers.close()


async def test_bad_input_fails_alone(workers: Workers) -> None:
    error = invalid("images[1].data", "is corrupt")

    def bad(_wanted: Wanted) -> str:
        raise error

    ran = await workers.run([lambda _: "a", bad, lambda _: "c"], Estimate(), soon())
    assert [one.result for one in ran] == ["a", error, "c"]


async def test_any_other_failure_fails_the_request_and_stops_the_rest(workers: Workers) -> None:
    ran: list[int] = []

    def broken(_wanted: Wanted) -> None:
        raise SightlineError(grpc.StatusCode.INTERNAL, "MODEL_RUN_FAILED", "x")

    work = [broken, *[lambda _wanted, n=n: ran.append(n) for n in range(3)]]
    with pytest.raises(SightlineError, match="MODEL_RUN_FAILED"):
        await workers.run(work, Estimate(), soon())
    assert await workers.run([lambda _: "next"], Estimate(), soon()) is not None
    assert len(ran) <= 1  # one may have begun before the failure was known
    assert workers._jobs == {}


async def test_a_caller_that_gives_up_takes_its_place_in_the_queue_along(workers: Workers) -> None:
    gate, ran = Gate(), []
    first = asyncio.create_task(workers.run([gate], Estimate(), soon()))
    await until(gate.began.is_set)
    second = asyncio.create_task(
        workers.run([lambda _wanted: ran.append("second")], Estimate(), soon())
    )
    third = asyncio.create_task(workers.run([lambda _wanted: "third"], Estimate(), soon()))
    await until(lambda: len(workers._jobs) == 3)
    second.cancel()
    await until(second.done)
    gate.open.set()
    assert [one.result for one in await first] == ["through"]
    assert [one.result for one in await third] == ["third"]
    assert ran == []


async def test_running_work_can_see_that_its_caller_gave_up(workers: Workers) -> None:
    gate = Gate()
    call = asyncio.create_task(workers.run([gate], Estimate(), soon()))
    await until(gate.began.is_set)
    assert gate.wanted is not None
    assert gate.wanted()
    call.cancel()
    await until(call.done)
    assert not gate.wanted()
    gate.open.set()
    assert await workers.run([lambda _: 1], Estimate(), soon()) is not None


async def test_running_work_can_see_that_it_is_late(workers: Workers) -> None:
    def work(wanted: Wanted) -> None:
        while wanted():
            time.sleep(0.001)
        raise UnwantedError

    with pytest.raises(SightlineError) as caught:
        await workers.run([work], Estimate(), soon(0.05))
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == "DEADLINE_EXCEEDED"


async def test_what_waited_past_its_deadline_is_not_run(workers: Workers) -> None:
    gate, ran = Gate(), []
    first = asyncio.create_task(workers.run([gate], Estimate(), soon()))
    await until(gate.began.is_set)
    late = asyncio.create_task(
        workers.run([lambda _wanted: ran.append("late")], Estimate(), soon(0.02))
    )
    await asyncio.sleep(0.03)
    gate.open.set()
    with pytest.raises(SightlineError) as caught:
        await late
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await first
    assert ran == []


async def test_a_full_queue_refuses_at_once(workers: Workers) -> None:
    gate = Gate()
    first = asyncio.create_task(workers.run([gate], Estimate(), soon()))
    await until(gate.began.is_set)
    waiting = asyncio.create_task(workers.run([lambda _: 1] * 4, Estimate(), soon()))
    await until(lambda: len(workers._jobs) == 5)
    with pytest.raises(SightlineError, match="QUEUE_FULL"):
        await workers.run([lambda _: 1], Estimate(), soon())
    gate.open.set()
    await asyncio.gather(first, waiting)


async def test_what_came_of_it_says_how_long_it_waited(workers: Workers) -> None:
    gate = Gate()
    first = asyncio.create_task(workers.run([gate], Estimate(), soon()))
    await until(gate.began.is_set)
    second = asyncio.create_task(workers.run([lambda _: "x"], Estimate(), soon()))
    await until(lambda: len(workers._jobs) == 2)
    await asyncio.sleep(0.05)
    gate.open.set()
    (ran,) = await second
    assert isinstance(ran, Ran)
    assert ran.waited >= 0.05
    await first


async def test_what_is_given_up_may_be_asked_elsewhere(workers: Workers) -> None:
    gate = Gate()
    running = asyncio.create_task(workers.run([gate], Estimate(), soon()))
    await until(gate.began.is_set)
    waiting = asyncio.create_task(workers.run([lambda _: 1] * 2, Estimate(), soon()))
    await until(lambda: len(workers._jobs) == 3)
    workers.give_up()
    late = workers.run([lambda _: 1], Estimate(), soon())
    for call in (running, waiting, late):
        with pytest.raises(SightlineError) as caught:
            await call
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.reason == "SHUTTING_DOWN"
    gate.open.set()
    await until(lambda: not workers._jobs)
