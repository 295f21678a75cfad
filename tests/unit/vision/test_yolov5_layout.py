"""Files of YOLOv5's and YOLOv7's own exporters, which have no task in their metadata."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.vision.test_yolo import suppressed
from tests.unit.vision.yolov5_onnx import SIDE, compute, make_levels, save_yolov5
from vision import Layout, ModelError, OnnxYolo

RNG = np.random.default_rng(2)
IMAGE = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
CONFIDENCE = 0.4


def expected(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes, confidences and classes by the definition: objectness times class."""
    scores = rows[:, 4:5] * rows[:, 5:]
    best, label = scores.max(axis=1), scores.argmax(axis=1)
    at = np.flatnonzero(best > CONFIDENCE)
    corners = np.concatenate(
        [rows[at, :2] - rows[at, 2:4] / 2, rows[at, :2] + rows[at, 2:4] / 2], axis=1
    )
    kept = sorted(suppressed(corners, best[at], label[at], 0.7), key=lambda k: -best[at][k])
    clipped = corners[kept].clip(0, SIDE)
    inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return clipped[inside], best[at][kept][inside], label[at][kept][inside]


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("own", [True, False])
def test_objectness_times_class(tmp_path: Path, classes: int, own: bool) -> None:
    labels = [f"class {number}" for number in range(classes)]
    metadata = {"stride": "32", "names": repr(labels)} if own else {}
    levels = make_levels(classes)
    path = save_yolov5(tmp_path / "model.onnx", levels, metadata)
    model = OnnxYolo.load(path, names=None if own else dict(enumerate(labels)))
    assert model.layout is Layout.YOLOV5
    detections = model.detect(IMAGE, confidence=CONFIDENCE)
    pixels = (IMAGE / 255).astype(np.float32).transpose(2, 0, 1)
    boxes, confidence, class_id = expected(compute(levels, pixels))
    assert len(detections) == len(boxes) >= 10
    assert detections.confidence == pytest.approx(confidence, abs=1e-4)
    assert detections.class_id.tolist() == class_id.tolist()
    assert detections.xyxy == pytest.approx(boxes, abs=0.02)


def test_an_image_without_an_object_has_no_detections(tmp_path: Path) -> None:
    levels = make_levels(1)
    for level in levels:
        level.bias -= 20
    model = OnnxYolo.load(save_yolov5(tmp_path / "model.onnx", levels, {"names": "['plate']"}))
    assert model.layout is Layout.YOLOV5
    assert len(model.detect(IMAGE)) == 0


@pytest.mark.parametrize("layout", ["yolov5", Layout.YOLOV5])
def test_a_declared_layout_needs_no_proof(tmp_path: Path, layout: str) -> None:
    levels = make_levels(1)
    for level in levels:
        level.grid = lambda cells=level.cells: np.zeros((1, cells, cells, 2), np.float32)  # type: ignore[method-assign, misc]
    path = save_yolov5(tmp_path / "model.onnx", levels, {"names": "['plate']"})
    with pytest.raises(ModelError, match=r"end_to_end or yolov5 or rtdetr.*fits none"):
        OnnxYolo.load(path)
    assert OnnxYolo.load(path, layout=layout).layout is Layout.YOLOV5
    with pytest.raises(ModelError, match=r"layout must be one of yolov8, .*, got 'yolov4'"):
        OnnxYolo.load(path, layout="yolov4")


def test_as_many_labels_as_the_output_has(tmp_path: Path) -> None:
    path = save_yolov5(tmp_path / "model.onnx", make_levels(3), {"names": "['plate', 'mould']"})
    with pytest.raises(ModelError, match=r"the output is \[1, 252, 8\]: neither .* labels"):
        OnnxYolo.load(path)
