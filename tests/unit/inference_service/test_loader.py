"""The lane of a model, and what of its metadata its `model.yaml` replaces."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from inference_service.models.engine import Model
from inference_service.models.loader import Runtime, choose_lane, load_files
from inference_service.models.model_spec import Batching, ModelSpec, ModelSpecError
from tests.unit.vision.models import save_detector
from vision import Layout, ModelError, OnnxYolo

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


def load(folder: Path, yaml: str) -> Model:
    (folder / "model.yaml").write_text(yaml)
    return load_files("m", "1", folder / "model.onnx", folder / "model.yaml", Runtime())


@pytest.mark.parametrize("metadata", [{}, {"names": "broken", "imgsz": "broken", "args": "broken"}])
def test_labels_and_size_in_model_yaml_are_enough(tmp_path: Path, metadata: dict[str, str]) -> None:
    save_detector(tmp_path / "model.onnx", shape=(1, 3, "h", "w"), metadata=metadata)
    with pytest.raises(ModelError, match=r"key 'names'.*set `labels` in model.yaml"):
        load(tmp_path, "")
    with pytest.raises(ModelError, match=r"key 'imgsz'.*set `input` in model.yaml"):
        load(tmp_path, "labels: [plate, mould]")
    model = load(tmp_path, "labels: [plate, mould]\ninput: {width: 96, height: 64}")
    assert model.network.input_size == (64, 96)
    assert dict(model.network.names) == {0: "plate", 1: "mould"}


def test_a_layout_in_model_yaml_decides(tmp_path: Path) -> None:
    rows = np.zeros((20, 6), dtype=np.float32)  # no object: nothing to tell layouts apart by
    save_detector(tmp_path / "model.onnx", output=rows, moved=(0, 4), metadata={})
    with pytest.raises(ModelError, match=r"end_to_end or yolov5 or rtdetr.*set the layout"):
        load(tmp_path, "labels: [plate]")
    for layout in (Layout.YOLOV5, Layout.END_TO_END):
        network = load(tmp_path, f"labels: [plate]\nlayout: {layout}").network
        assert isinstance(network, OnnxYolo)
        assert network.layout is layout
    with pytest.raises(ModelSpecError, match=r"layout: must be 'yolov8', .*got 'yolov4'"):
        load(tmp_path, "labels: [plate]\nlayout: yolov4")
