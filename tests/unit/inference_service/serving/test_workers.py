"""The worker threads: real threads, and deadlines that work can miss."""

import asyncio
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.serving.admission import Admission, Lane
from inference_service.serving.work import Ran
from inference_service.serving.workers import Workers
from servicekit.errors import SightlineError, invalid


@dataclass(eq=False)
class Doubler:
    """A model that doubles what it gets, and can be held up or made to fail."""

    lane: Lane = field(default_factory=Lane)
    name: str = "doubler"
    batches: list[list[float]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    fails_on: float | None = None

    def __post_init__(self) -> None:
        self.go.set()

    def run(self, batch: NDArray[Any]) -> Sequence[NDArray[Any]]:
        self.batches.append([float(row) for row in batch[:, 0]])
        self.began.set()
        assert self.go.wait(10)
        if self.fails_on in batch:
            raise SightlineError(grpc.StatusCode.INTERNAL, "MODEL_RUN_FAILED", "x")
        return [batch * 2, batch + 1]

    def hold(self) -> None:
        self.go.clear()
        self.began.clear()


@dataclass
class Number:
    """Work that asks for the double of a number."""

    value: float
    rows: int = 1
    error: Exception | None = None
    on_prepare: Callable[[], object] = lambda: None
    on_finish: Callable[[], object] = lambda: None
    threads: list[int] = field(default_factory=list)

    def prepare(self) -> NDArray[Any]:
        self.threads.append(threading.get_ident())
        self.on_prepare()
        if self.error:
            raise self.error
        return np.full((self.rows, 1), self.value)

    def finish(self, outputs: Sequence[NDArray[Any]]) -> list[float]:
        self.on_finish()
        assert np.array_equal(outputs[1], np.full((self.rows, 1), self.value + 1))
        return [float(row) for row in outputs[0][:, 0]]


class Heard:
    """What a listener was told."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.lost: Counter[str] = Counter()

    def batch(self, model: str, rows: int) -> None:
        assert model == "doubler"
        self.rows.append(rows)

    def expired(self, where: str) -> None:
        self.lost[where] += 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event for most conditions
            await asyncio.sleep(0.001)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def workers(heard: Heard) -> AsyncIterator[Workers]:
    made = Workers(Admission(workers=1, queue_size=4), heard)
    yield made
    made.close()
    assert made._members == {}
    assert made._admission.depth == made._admission.running == 0


@pytest.fixture
def model() -> Doubler:
    return Doubler()


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


def results(ran: Sequence[Ran[Any]]) -> list[Any]:
    return [each.result for each in ran]


async def busy(workers: Workers, model: Doubler) -> "asyncio.Task[list[Ran[Any]]]":
    """Returns a call that holds the only worker until `model.go` is set."""
    model.hold()
    call = asyncio.create_task(workers.run([Number(0)], model, soon()))
    await until(model.began.is_set)
    return call


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
    slow = Number(1, on_prepare=lambda: time.sleep(0.02), on_finish=lambda: time.sleep(0.03))
    (ran,) = await workers.run([slow], model, soon())
    assert ran.decode >= 0.02
    assert ran.post >= 0.03
    assert ran.infer < 0.02
    assert ran.batch == 1


async def test_runs_teach_the_estimates(workers: Workers, model: Doubler) -> None:
    await workers.run([Number(1, on_prepare=lambda: time.sleep(0.02))], model, soon())
    assert model.lane.estimates.mean(1, time.monotonic()) >= 0.02


async def test_at_most_so_many_at_a_time(heard: Heard, model: Doubler) -> None:
    workers = Workers(Admission(workers=2, queue_size=8), heard)
    now, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    await workers.run([Number(1, on_prepare=work) for _ in range(8)], model, soon())
    assert most == 2
    workers.close()


async def test_bad_input_fails_alone(workers: Workers, model: Doubler) -> None:
    error = invalid("images[1].data", "is corrupt")
    ran = await workers.run([Number(1), Number(2, error=error), Number(3)], model, soon())
    assert results(ran) == [[2], error, [6]]


async def test_any_other_failure_fails_the_request_and_stops_the_rest(
    workers: Workers, model: Doubler
) -> None:
    model.fails_on = 7.0
    with pytest.raises(SightlineError, match="MODEL_RUN_FAILED"):
        await workers.run([Number(7), Number(1), Number(2), Number(3)], model, soon())
    assert results(await workers.run([Number(9)], model, soon())) == [[18]]
    assert len(model.batches) <= 3  # one may have begun before the failure was known


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


class TestBatches:
    """A model that takes four rows at a time."""

    @pytest.fixture
    def model(self) -> Doubler:
        return Doubler(Lane(max_rows=4))

    async def test_what_waits_is_run_together(
        self, workers: Workers, model: Doubler, heard: Heard
    ) -> None:
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

    async def test_rows_go_back_to_whose_they_are(self, workers: Workers, model: Doubler) -> None:
        first = await busy(workers, model)
        calls = [
            asyncio.create_task(workers.run([Number(n, rows=n)], model, soon())) for n in (1, 3)
        ]
        await until(lambda: len(workers._members) == 3)
        model.go.set()
        assert [results(await call) for call in calls] == [[[2]], [[6, 6, 6]]]
        await first

    async def test_inputs_are_prepared_side_by_side(self, workers: Workers, model: Doubler) -> None:
        both = threading.Barrier(2)
        first = await busy(workers, model)
        work = [Number(n, on_prepare=lambda: both.wait(10)) for n in (1, 2)]
        call = asyncio.create_task(workers.run(work, model, soon()))
        await until(lambda: len(workers._members) == 3)
        model.go.set()
        assert results(await call) == [[2], [4]]
        await first

    async def test_bad_input_leaves_the_batch(self, workers: Workers, model: Doubler) -> None:
        error = invalid("images[1].data", "is corrupt")
        ran = await workers.run([Number(1), Number(2, error=error), Number(3)], model, soon())
        assert results(ran) == [[2], error, [6]]
        assert model.batches == [[1, 3]]

    async def test_who_gives_up_leaves_the_batch(self, workers: Workers, model: Doubler) -> None:
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
        self, workers: Workers, model: Doubler
    ) -> None:
        errors = [invalid(f"images[{n}].data", "is corrupt") for n in range(2)]
        ran = await workers.run([Number(1, error=error) for error in errors], model, soon())
        assert results(ran) == errors
        assert model.batches == []

    async def test_what_fails_a_batch_fails_alone(self, workers: Workers, model: Doubler) -> None:
        model.fails_on = 2.0
        first = await busy(workers, model)
        calls = [asyncio.create_task(workers.run([Number(n)], model, soon())) for n in (1, 2, 3)]
        await until(lambda: len(workers._members) == 4)
        model.go.set()
        good, bad, fine = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(bad, SightlineError)
        assert [results(each) for each in (good, fine)] == [[[2]], [[6]]]  # type: ignore[arg-type]
        await first

    async def test_a_batch_waits_for_company(self, workers: Workers) -> None:
        model = Doubler(Lane(max_rows=2, max_wait=20.0))
        first = asyncio.create_task(workers.run([Number(1)], model, soon()))
        await until(lambda: len(workers._members) == 1)
        assert model.batches == []
        await workers.run([Number(2)], model, soon())
        await first
        assert model.batches == [[1, 2]]

    async def test_and_no_longer_than_it_is_told_to(self, workers: Workers) -> None:
        model = Doubler(Lane(max_rows=2, max_wait=0.02))
        (ran,) = await workers.run([Number(1)], model, soon())
        assert 0.02 <= ran.waited < 5


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
