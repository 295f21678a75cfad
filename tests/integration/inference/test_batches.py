"""Calls that share runs of a model, over a real socket: who is in a run, and what each gets.

What waits for a worker is known for sure while a slow run keeps the only one busy.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from sightline.inference.v1 import inference_pb2

from tests.integration.inference.conftest import SLOW_SECONDS
from tests.integration.inference.figures import Figures, figures, grown, until
from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    InferFuture,
    ask,
    client,
    failures,
    names,
    started,
)
from tests.unit.inference_service.tiny_onnx import colour_model, corrupt, picture

MOST = 8
WAIT_SECONDS = 0.02
SLACK = 0.5  # what a busy machine may add
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
PICTURES = {name: picture(colour) for name, colour in COLOURS.items()}
RUNS = 'sightline_inference_batch_rows_count{model="together"}'
ROWS = 'sightline_inference_batch_rows_sum{model="together"}'
FRESH_RUNS = 'sightline_inference_batch_rows_count{model="fresh"}'
CANCELLED = 'sightline_inference_expired_total{where="cancelled"}'
SLOW, SLOWEST = inference_pb2.ModelHint(name="slow"), inference_pb2.ModelHint(name="slowest")
FRESH = inference_pb2.ModelHint(name="fresh")
"""A model that has never run: no run of it is known to be short enough to overtake a long one."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceProcess]:
    folder = tmp_path_factory.mktemp("batches")
    colour_model(folder / "models/together/1/model.onnx", batches=True)
    colour_model(folder / "models/slow/1/model.onnx", wait_seconds=SLOW_SECONDS)
    # Long enough for a busy machine to see what waits meanwhile.
    colour_model(folder / "models/slowest/1/model.onnx", wait_seconds=5 * SLOW_SECONDS)
    colour_model(folder / "models/fresh/1/model.onnx")
    flags = [
        *("--model-repository", str(folder / "models"), "--default-model", "together"),
        *("--workers", "1", "--metrics-listen", "127.0.0.1:0"),
        *("--max-batch-size", str(MOST), "--batch-wait-seconds", str(WAIT_SECONDS)),
    ]
    with started(folder, *flags) as connected:
        figures(connected)  # the first time takes longer
        yield connected


@pytest.fixture
def caller(server: InferenceProcess) -> Iterator[InferenceStub]:
    with client(server) as connected:
        yield connected


@contextmanager
def busy(server: InferenceProcess, caller: InferenceStub) -> Iterator[Figures]:
    """Keep the only worker busy for a second or more; yield the figures before."""
    call = caller.stub.Infer.future(ask(PICTURES["red"], model=SLOWEST), timeout=60)
    before = until(server, lambda now: now["sightline_inference_running"] == 1)
    yield before
    assert names(call.result().results[0]) == ["red"]


def waiting(server: InferenceProcess, count: int) -> None:
    """Wait until so many pictures wait for the worker."""
    until(server, lambda now: now["sightline_inference_queue_depth"] == count)


def calls(
    caller: InferenceStub, pictures: Sequence[bytes], timeout: float = 60
) -> list[InferFuture]:
    return [caller.stub.Infer.future(ask(image), timeout=timeout) for image in pictures]


def answers(futures: Sequence[InferFuture]) -> list[Sequence[str]]:
    return [names(call.result().results[0]) for call in futures]


def counted(server: InferenceProcess, before: Figures, rows: int) -> tuple[float, float]:
    """Return the runs and their pictures since `before`, once so many pictures are counted."""
    after = until(server, lambda now: grown(before, now, ROWS) >= rows)
    return grown(before, after, RUNS), grown(before, after, ROWS)


def test_calls_share_runs_and_each_gets_its_own_answer(
    server: InferenceProcess, caller: InferenceStub
) -> None:
    wanted = ["red", "green", "blue", "green"] * (2 * MOST // 4)
    with busy(server, caller) as before:
        futures = calls(caller, [PICTURES[name] for name in wanted])
        waiting(server, len(wanted))
    assert answers(futures) == [[name] for name in wanted]
    assert counted(server, before, 2 * MOST) == (2, 2 * MOST)


def test_images_of_one_call_share_a_run_with_those_of_others(
    server: InferenceProcess, caller: InferenceStub
) -> None:
    with busy(server, caller) as before:
        several = caller.stub.Infer.future(ask(*PICTURES.values()), timeout=60)
        single = calls(caller, [PICTURES["blue"]])
        waiting(server, 4)
    assert [names(result) for result in several.result().results] == [[name] for name in PICTURES]
    assert answers(single) == [["blue"]]
    assert counted(server, before, 4) == (1, 4)


def test_a_corrupt_image_fails_alone(server: InferenceProcess, caller: InferenceStub) -> None:
    with busy(server, caller) as before:
        good = calls(caller, [PICTURES["red"], PICTURES["green"]])
        bad = calls(caller, [corrupt()])
        more = calls(caller, [PICTURES["blue"]])
        waiting(server, 4)
    assert [error.reason for error in failures(bad)] == ["IMAGE_CORRUPT"]
    assert answers([*good, *more]) == [["red"], ["green"], ["blue"]]
    assert counted(server, before, 3) == (1, 3)


def test_a_cancelled_call_leaves_before_it_costs_anything(
    server: InferenceProcess, caller: InferenceStub
) -> None:
    with busy(server, caller) as before:
        first, gone, last = calls(caller, list(PICTURES.values()))
        waiting(server, 3)
        gone.cancel()  # type: ignore[no-untyped-call]
        waiting(server, 2)
    assert answers([first, last]) == [["red"], ["blue"]]
    assert counted(server, before, 2) == (1, 2)
    assert grown(before, figures(server), CANCELLED) == 1


def test_an_expired_call_leaves_before_it_costs_anything(
    server: InferenceProcess, caller: InferenceStub
) -> None:
    with busy(server, caller) as before:
        good = calls(caller, [PICTURES["red"]])
        gone = [caller.stub.Infer.future(ask(PICTURES["green"], model=FRESH), timeout=0.1)]
        assert [error.code.name for error in failures(gone)] in (
            ["DEADLINE_EXCEEDED"],
            ["RESOURCE_EXHAUSTED"],  # the run's end was known to be too late
        )
        waiting(server, 1)
    assert answers(good) == [["red"]]
    assert counted(server, before, 1) == (1, 1)
    assert grown(before, figures(server), FRESH_RUNS) == 0


def noting(order: list[str], name: str) -> Callable[[object], None]:
    return lambda _: order.append(name)


def test_the_earlier_deadline_is_answered_first(
    server: InferenceProcess, caller: InferenceStub
) -> None:
    order: list[str] = []
    with busy(server, caller):
        futures = []
        for name, timeout in (("late", 60), ("early", 20), ("between", 40)):
            request = ask(PICTURES["red"], model=SLOW)
            call = caller.stub.Infer.future(request, timeout=timeout)
            call.add_done_callback(noting(order, name))
            futures.append(call)
            waiting(server, len(futures))
    assert answers(futures) == [["red"]] * 3
    until(server, lambda _: len(order) == 3)  # callbacks may come after the answers
    assert order == ["early", "between", "late"]


def test_a_call_alone_waits_for_company_no_longer_than_it_is_told(caller: InferenceStub) -> None:
    caller.infer(PICTURES["red"])
    begun = time.perf_counter()
    timing = caller.infer(PICTURES["red"]).timing
    took = time.perf_counter() - begun
    assert WAIT_SECONDS * 0.9 < timing.queue.ToTimedelta().total_seconds() < WAIT_SECONDS + SLACK
    assert took < WAIT_SECONDS + SLACK
