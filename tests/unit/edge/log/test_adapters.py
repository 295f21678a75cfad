import math
from pathlib import Path
from typing import Any

import pytest

from edge.detect.results import classes_of
from edge.log.adapters import (
    from_ultralytics,
    is_ultralytics,
)
from edge.log.logger import PredictionLogger
from edge.records import Box, Detection, DetectionArrays

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


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://user:secret@10.0.0.7/live?token=secret",
        "rtsp://user:sec/ret@10.0.0.7/live",
        "http://secret@10.0.0.7/mjpg",
        "https://10.0.0.7/mjpg?user=user&password=secret",
        "tcp://10.0.0.7:5000/secret",
    ],
)
def test_the_credentials_of_a_stream_stay_out_of_the_image_id(results: Any, url: str) -> None:
    cleaned = pytest.importorskip("ultralytics.utils.ops").clean_str(url)
    for path in (url, cleaned, cleaned.replace("/", "_")):
        prediction = from_ultralytics(results(picture(), path, NAMES), model_name="yolov8n")
        assert prediction.image_id.startswith(f"{url.partition(':')[0]} stream@")
        assert "secret" not in prediction.image_id


@pytest.mark.parametrize("name", ["weld___01.jpg", "a:__b.jpg", "rtsp.jpg", "icon@2x.png"])
def test_a_file_whose_name_looks_like_a_stream_keeps_it(results: Any, name: str) -> None:
    prediction = from_ultralytics(results(picture(), f"in/{name}", NAMES), model_name="yolov8n")
    assert prediction.image_id == name
    assert from_ultralytics(results(picture(), name, NAMES)).image_id == name


def test_a_name_that_is_no_text_becomes_one(results: Any) -> None:
    prediction = from_ultralytics(results(picture(), "shift/a-\udcff.jpg", NAMES))
    assert prediction.image_id == "a-\\xff.jpg"


def test_boxes(results: Any) -> None:
    rows = torch.tensor([[1.0, 2, 3, 4, 0.5, 1], [5.0, 6, 7, 8, 0.75, 0]])
    speed = {"preprocess": 1.0, "inference": 10.0, "postprocess": 0.5}
    result = results(picture(), "in/bus.jpg", NAMES, boxes=rows, speed=speed)
    assert is_ultralytics(result)
    prediction = from_ultralytics(result, model_name="yolov8n", model_version="8.4")
    assert prediction.image_id == "bus.jpg"
    assert (prediction.model_name, prediction.model_version) == ("yolov8n", "8.4")
    assert (prediction.image_width, prediction.image_height) == (640, 480)
    assert prediction.inference_seconds == pytest.approx(0.0115)
    assert isinstance(prediction.detections, DetectionArrays)
    assert prediction.detections == (
        Detection(0, "cat", 0.75, Box(5.0, 6.0, 7.0, 8.0)),
        Detection(1, "dog", 0.5, Box(1.0, 2.0, 3.0, 4.0)),
    )


@pytest.mark.parametrize("kind", ["torch", "numpy", "half"])
def test_tracks(results: Any, kind: str) -> None:
    rows = torch.tensor([[1.0, 2, 3, 4, 17, 0.25, 1], [1.0, 2, 3, 4, 5, 0.5, 1]])
    rows = {"torch": rows, "numpy": rows.numpy(), "half": rows.half()}[kind]
    result = from_ultralytics(
        results(picture(), "v.mp4", NAMES, boxes=rows), image_id="v.mp4#9"
    ).detections
    assert isinstance(result, DetectionArrays)
    assert [(item.confidence, item.track_id) for item in result] == [(0.5, 5), (0.25, 17)]


def test_what_is_not_tracked_has_no_track(results: Any) -> None:
    result = results(picture(), "a.jpg", NAMES, boxes=torch.tensor([[1.0, 2, 3, 4, 0.5, 1]]))
    assert from_ultralytics(result).detections[0].track_id is None


def test_results_with_nan_do_not_end_the_loop(results: Any) -> None:
    result = results(picture(), "a.jpg", NAMES, boxes=torch.tensor([[math.nan, 2, 3, 4, 0.5, 1]]))
    (detection,) = from_ultralytics(result).detections
    assert detection.box is not None
    assert math.isnan(detection.box.x_min)


def test_results_that_change_later_do_not_change_what_is_logged(results: Any) -> None:
    rows = torch.tensor([[1.0, 2, 3, 4, 0.5, 1]])
    prediction = from_ultralytics(results(picture(), "a.jpg", NAMES, boxes=rows))
    rows[:] = 0
    assert prediction.detections == (Detection(1, "dog", 0.5, Box(1.0, 2.0, 3.0, 4.0)),)


def test_classes(results: Any) -> None:
    result = results(picture(), "a.jpg", NAMES, probs=torch.tensor([0.25, 0.75]))
    assert from_ultralytics(result).detections == (
        Detection(1, "dog", 0.75),
        Detection(0, "cat", 0.25),
    )


def test_as_many_classes_as_are_asked_for(results: Any) -> None:
    shares = torch.tensor([0.1, 0.2, 0.05, 0.3, 0.04, 0.25, 0.06])
    names = {number: str(number) for number in range(7)}
    result = results(picture(), "a.jpg", names, probs=shares)
    assert [item.class_id for item in classes_of(result)] == [3, 5, 1, 0, 6]
    assert [item.class_id for item in classes_of(result, 2)] == [3, 5]
    assert len(classes_of(result, 100)) == 7
    assert from_ultralytics(result).detections == classes_of(result)


def test_what_does_not_classify_has_no_classes(results: Any) -> None:
    result = results(picture(), "a.jpg", NAMES, boxes=torch.zeros((0, 6)))
    assert classes_of(result) == ()


def test_labels_are_taken_over(results: Any) -> None:
    result = results(picture(), "a.jpg", NAMES, boxes=torch.zeros((0, 6)))
    assert from_ultralytics(result, labels={"line": "3"}).labels == {"line": "3"}


def test_nothing_found_and_nothing_measured(results: Any) -> None:
    prediction = from_ultralytics(results(picture(), "a.jpg", NAMES, boxes=torch.zeros((0, 6))))
    assert prediction.detections == ()
    assert prediction.inference_seconds is None


def test_results_can_be_logged_as_they_are(results: Any, tmp_path: Path) -> None:
    result = results(picture(), "a.jpg", NAMES, boxes=torch.tensor([[1.0, 2, 3, 4, 0.5, 1]]))
    with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path) as log:
        log(result, wait="spooled", timeout=20)
        assert log.stats().spooled == 1
