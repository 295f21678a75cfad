"""Deadlines and overload over a real socket, on a model that takes its time."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.integration.inference.conftest import SLOW_SECONDS
from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    failures,
    names,
    started,
)
from tests.unit.inference_service.tiny_onnx import picture

pytestmark = pytest.mark.alone

RED = picture()
SLACK = 0.25  # what a busy machine may add to a deadline of the client's own


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, slow: Path) -> Iterator[InferenceProcess]:
    flags = [
        *("--model-repository", str(slow), "--workers", "1"),
        *("--queue-size", "4", "--max-images", "4"),
    ]
    with started(tmp_path_factory.mktemp("deadlines"), *flags) as running:
        yield running


@pytest.fixture
def caller(server: InferenceProcess) -> Iterator[InferenceStub]:
    with client(server) as connected:
        connected.infer(RED, timeout=60)  # what another test has left has been done
        yield connected


def timed(caller: InferenceStub, timeout: float | None) -> tuple[grpc.StatusCode, str, float]:
    begun = time.perf_counter()
    error = caller.refusal(RED, timeout=timeout)
    return error.code, error.reason, time.perf_counter() - begun


def test_an_error_is_never_later_than_the_deadline(caller: InferenceStub) -> None:
    code, _, took = timed(caller, 0.05)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert took < 0.05 + SLACK


def test_while_the_model_runs_a_hopeless_deadline_is_refused_at_once(caller: InferenceStub) -> None:
    run = caller.infer(RED).timing.infer.ToTimedelta().total_seconds()
    running = caller.stub.Infer.future(ask(RED), timeout=60)
    waiting = caller.stub.Infer.future(ask(RED), timeout=60)
    error = caller.refusal(RED, timeout=run / 2)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "DEADLINE_TOO_SHORT"
    assert error.retryable
    assert error.retry_after
    for call in (running, waiting):
        assert names(call.result().results[0]) == ["red"]


def test_an_idle_server_tries_what_it_is_not_expected_to_do(caller: InferenceStub) -> None:
    """Item 5: what is known may be wrong, so it is no reason to refuse while nobody waits."""
    run = caller.infer(RED).timing.infer.ToTimedelta().total_seconds()
    code, reason, took = timed(caller, run / 2)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED  # it was tried, and took too long
    assert reason in {"DEADLINE_EXCEEDED", ""}
    assert took < run / 2 + SLACK


def test_abandoned_calls_cost_nobody_anything(caller: InferenceStub) -> None:
    run = caller.infer(RED).timing.infer.ToTimedelta().total_seconds()
    request = ask(RED)
    abandoned = [caller.stub.Infer.future(request, timeout=60) for _ in range(4)]
    for call in abandoned:
        call.cancel()  # type: ignore[no-untyped-call]
    begun = time.perf_counter()
    assert names(caller.infer(RED).results[0]) == ["red"]
    assert time.perf_counter() - begun < 3 * run + SLACK  # not 5: at most one had begun


def test_a_full_queue_is_refused_with_the_time_to_come_back(caller: InferenceStub) -> None:
    calls = [caller.stub.Infer.future(ask(RED), timeout=60) for _ in range(12)]
    errors = failures(calls)
    assert len(errors) >= 12 - (1 + 4) - 3
    for error in errors:
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.reason == "QUEUE_FULL"
        assert error.retry_after is not None
        assert error.retry_after > 0
    assert len(errors) < 12
    assert names(caller.infer(RED).results[0]) == ["red"]


def test_a_call_without_a_deadline_gets_the_server_s(tmp_path: Path, slow: Path) -> None:
    flags = ["--model-repository", str(slow), "--default-deadline-seconds", "0.05"]
    with started(tmp_path, *flags) as server, client(server) as connected:
        code, reason, took = timed(connected, None)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert reason == "DEADLINE_EXCEEDED"
        assert took < 0.05 + SLACK
        assert names(connected.infer(RED, timeout=60).results[0]) == ["red"]


def test_the_slow_model_takes_as_long_as_it_says_on_any_machine(caller: InferenceStub) -> None:
    """Check the basis of the tests of this folder: the run time is known on any machine."""
    run = caller.infer(RED).timing.infer.ToTimedelta().total_seconds()
    assert run >= SLOW_SECONDS
