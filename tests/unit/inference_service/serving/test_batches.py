"""The worker threads, with a model that takes four rows at a time."""

import asyncio
import threading
import time
from typing import Any

import pytest

from inference_service.serving.admission import Admission, Lane, Share
from inference_service.serving.work import MemberResult
from inference_service.serving.workers import Workers
from servicekit.errors import SightlineError, invalid
from servicekit.resources import cpus
from tests.unit.inference_service.serving.doubler import (
    Doubler,
    Heard,
    Number,
    busy,
    results,
    soon,
    until,
)


@pytest.fixture
def model() -> Doubler:
    return Doubler(Lane(max_rows=4))


async def test_what_waits_is_run_together(workers: Workers, model: Doubler, heard: Heard) -> None:
    first = await busy(workers, model)
    calls = [asyncio.create_task(workers.run([Number(n)], model, soon())) for n in (1, 2, 3)]
    await until(lambda: len(workers._members) == 4)
    model.go.set()
    answers = [(await call)[0] for call in calls]
    assert results(answers) == [[2], [4], [6]]
    assert [each.batch for each in answers] == [3, 3, 3]
    assert model.batches == [[0], [1, 2, 3]]
    assert heard.rows == [1, 3]
    assert model.lane.estimates.mean(4, time.monotonic()) > 0
    await first


async def test_rows_go_back_to_whose_they_are(workers: Workers, model: Doubler) -> None:
    first = await busy(workers, model)
    calls = [asyncio.create_task(workers.run([Number(n, rows=n)], model, soon())) for n in (1, 3)]
    await until(lambda: len(workers._members) == 3)
    model.go.set()
    assert [results(await call) for call in calls] == [[[2]], [[6, 6, 6]]]
    await first


async def test_inputs_are_prepared_side_by_side(workers: Workers, model: Doubler) -> None:
    both = threading.Barrier(2)
    first = await busy(workers, model)
    work = [Number(n, on_prepare=lambda: both.wait(10)) for n in (1, 2)]
    call = asyncio.create_task(workers.run(work, model, soon()))
    await until(lambda: len(workers._members) == 3)
    model.go.set()
    assert results(await call) == [[2], [4]]
    await first


async def test_bad_input_leaves_the_batch(workers: Workers, model: Doubler) -> None:
    error = invalid("images[1].data", "is corrupt")
    ran = await workers.run([Number(1), Number(2, error=error), Number(3)], model, soon())
    assert results(ran) == [[2], error, [6]]
    assert model.batches == [[1, 3]]


async def test_who_gives_up_leaves_the_batch(workers: Workers, model: Doubler) -> None:
    began, go = threading.Event(), threading.Event()

    def prepare() -> None:
        began.set()
        assert go.wait(10)

    first = await busy(workers, model)
    stays = asyncio.create_task(workers.run([Number(1)], model, soon()))
    leaves = asyncio.create_task(workers.run([Number(2, on_prepare=prepare)], model, soon()))
    await until(lambda: len(workers._members) == 3)
    model.go.set()
    await until(began.is_set)
    leaves.cancel()
    await until(leaves.done)
    go.set()
    assert results(await stays) == [[2]]
    assert model.batches == [[0], [1]]
    await first


async def test_a_batch_of_which_nobody_is_left_costs_no_run(
    workers: Workers, model: Doubler
) -> None:
    errors = [invalid(f"images[{n}].data", "is corrupt") for n in range(2)]
    ran = await workers.run([Number(1, error=error) for error in errors], model, soon())
    assert results(ran) == errors
    assert model.batches == []


async def test_what_fails_a_batch_fails_alone(workers: Workers, model: Doubler) -> None:
    model.fails_on = 2.0
    first = await busy(workers, model)
    calls = [asyncio.create_task(workers.run([Number(n)], model, soon())) for n in (1, 2, 3)]
    await until(lambda: len(workers._members) == 4)
    model.go.set()
    good, bad, fine = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(bad, SightlineError)
    assert [results(each) for each in (good, fine)] == [[[2]], [[6]]]  # type: ignore[arg-type]
    await first


async def test_a_batch_without_memory_is_run_one_by_one(workers: Workers, model: Doubler) -> None:
    model.lacks_memory_on = 2.0
    first = await busy(workers, model)
    calls = [asyncio.create_task(workers.run([Number(n)], model, soon())) for n in (1, 2, 3)]
    await until(lambda: len(workers._members) == 4)
    model.go.set()
    good, lacking, fine = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(lacking, MemoryError), "told at once, and not when its deadline has passed"
    assert [results(each) for each in (good, fine)] == [[[2]], [[6]]]  # type: ignore[arg-type]
    await first


async def test_a_batch_waits_for_company(workers: Workers) -> None:
    model = Doubler(Lane(max_rows=2, max_wait=20.0))
    first = asyncio.create_task(workers.run([Number(1)], model, soon()))
    await until(lambda: len(workers._members) == 1)
    assert model.batches == []
    await workers.run([Number(2)], model, soon())
    await first
    assert model.batches == [[1, 2]]


async def test_and_no_longer_than_it_is_told_to(workers: Workers) -> None:
    model = Doubler(Lane(max_rows=2, max_wait=0.02))
    (ran,) = await workers.run([Number(1)], model, soon())
    assert 0.02 <= ran.waited < 5


async def test_images_of_callers_are_prepared_in_turn(heard: Heard, model: Doubler) -> None:
    workers = Workers(Admission(workers=2, queue_size=64), heard)
    threads = cpus()
    go, order = threading.Semaphore(0), list[str]()

    def prepare(name: str) -> None:
        order.append(name)
        assert go.acquire(timeout=10)

    def batch(name: str, count: int) -> "asyncio.Task[list[MemberResult[Any]]]":
        work = [Number(n, on_prepare=lambda: prepare(name)) for n in range(count)]
        return asyncio.create_task(workers.run(work, model, soon(), Share(name)))

    model.lane = Lane(max_rows=3 * threads)
    flood = batch("flood", 3 * threads)
    await until(lambda: len(order) == threads)
    good = batch("good", 2)
    await until(lambda: workers._admission.running == 2)
    go.release(5 * threads)
    await asyncio.gather(flood, good)
    assert "good" in order[threads : threads + 2]
    workers.close()
