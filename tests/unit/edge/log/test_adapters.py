from pathlib import Path
from typing import Any

import pytest

from edge.log.adapters import from_ultralytics, is_ultralytics
from edge.log.logger import PredictionLogger
from edge.records import Box, Detection

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")
NAMES = {0: "cat", 1: "dog"}


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    return pytest.importorskip("ultralytics.engine.results").Results


def picture() -> Any:
    return numpy.zeros((480, 640, 3), numpy.uint8)


def test_boxes(results: Any) -> None:
    rows = torch.tensor([[1.0, 2, 3, 4, 0.5, 1], [5.0, 6, 7, 8, 0.75, 0]])
    speed = {"preprocess": 1.0, "inference": 10.0, "postprocess": 0.5}
    found = results(picture(), "in/bus.jpg", NAMES, boxes=rows, speed=speed)
    assert is_ultralytics(found)
    prediction = from_ultralytics(found, model_name="yolov8n", model_version="8.4")
    assert prediction.image_id == "bus.jpg"
    assert (prediction.model_name, prediction.model_version) == ("yolov8n", "8.4")
    assert (prediction.image_width, prediction.image_height) == (640, 480)
    assert prediction.inference_seconds == pytest.approx(0.0115)
    assert prediction.detections == (
        Detection(0, "cat", 0.75, Box(5.0, 6.0, 7.0, 8.0)),
        Detection(1, "dog", 0.5, Box(1.0, 2.0, 3.0, 4.0)),
    )


def test_tracks(results: Any) -> None:
    found = results(picture(), "v.mp4", NAMES, boxes=torch.tensor([[1.0, 2, 3, 4, 17, 0.5, 1]]))
    assert from_ultralytics(found, image_id="v.mp4#9").detections[0].track_id == 17


def test_classes(results: Any) -> None:
    found = results(picture(), "a.jpg", NAMES, probs=torch.tensor([0.25, 0.75]))
    assert from_ultralytics(found).detections == (
        Detection(1, "dog", 0.75),
        Detection(0, "cat", 0.25),
    )


def test_nothing_found_and_nothing_measured(results: Any) -> None:
    prediction = from_ultralytics(results(picture(), "a.jpg", NAMES, boxes=torch.zeros((0, 6))))
    assert prediction.detections == ()
    assert prediction.inference_seconds is None


def test_results_can_be_logged_as_they_are(results: Any, tmp_path: Path) -> None:
    found = results(picture(), "a.jpg", NAMES, boxes=torch.tensor([[1.0, 2, 3, 4, 0.5, 1]]))
    with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path) as log:
        log(found, wait="spooled", timeout=20)
        assert log.stats().spooled == 1
