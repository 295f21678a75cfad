"""The lane of a model, from its file, its `model.yaml` and the server's settings."""

from types import SimpleNamespace
from typing import cast

import pytest

from inference_service.models.loader import Runtime, choose_lane
from inference_service.models.model_spec import Batching, ModelSpec
from vision import OnnxYolo

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def rows_and_wait(
    runtime: Runtime | None = None,
    batching: Batching | None = None,
    *,
    takes: int | None = None,
    provider: str = CPU,
) -> tuple[int, float]:
    network = cast("OnnxYolo", SimpleNamespace(batch_size=takes, provider=provider))
    spec = ModelSpec(batching=batching or Batching())
    lane = choose_lane(spec, network, runtime or Runtime())
    return lane.max_rows, lane.max_wait


@pytest.mark.parametrize("provider", [CPU, CUDA])
def test_a_model_that_takes_one_row_is_run_singly_whatever_anybody_says(provider: str) -> None:
    defaults = Runtime(max_batch_size=8, batch_wait=0.5)
    batching = Batching(max_size=4, max_wait_ms=9)
    assert rows_and_wait(defaults, batching, takes=1, provider=provider) == (1, 0.0)


def test_a_model_of_a_fixed_batch_gets_just_that() -> None:
    assert rows_and_wait(Runtime(max_batch_size=8), takes=4) == (4, 0.0)


def test_batches_are_for_accelerators_unless_somebody_says_so() -> None:
    assert rows_and_wait() == (1, 0.0)
    assert rows_and_wait(provider=CUDA) == (8, 0.0)
    assert rows_and_wait(Runtime(max_batch_size=3, batch_wait=0.5)) == (3, 0.5)
    assert rows_and_wait(Runtime(max_batch_size=1, batch_wait=0.5), provider=CUDA) == (1, 0.0)


def test_the_model_s_owner_comes_before_the_server_s() -> None:
    defaults = Runtime(max_batch_size=3, batch_wait=0.5)
    assert rows_and_wait(defaults, Batching(max_size=6, max_wait_ms=20)) == (6, 0.02)
    assert rows_and_wait(defaults, Batching(max_wait_ms=0)) == (3, 0.0)


def test_a_device_gets_one_run_and_the_next_while_processors_all_get_theirs() -> None:
    network = cast("OnnxYolo", SimpleNamespace(batch_size=None, provider=CUDA))
    assert choose_lane(ModelSpec(), network, Runtime()).instances == 2
    network = cast("OnnxYolo", SimpleNamespace(batch_size=None, provider=CPU))
    assert choose_lane(ModelSpec(), network, Runtime()).instances is None
