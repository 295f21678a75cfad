"""Trackers on a real model: objects keep their identity while the picture moves."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from edge.detect import Detector, ProcessDetector, Thresholds, Tracker, UltralyticsDetector
from edge.device_model import load_detector
from edge.records import Detection
from edge.settings import EdgeSettings
from tests.photographs import photograph
from tests.unit.edge.overlap import overlap

MODEL = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
pytestmark = pytest.mark.skipif(
    not MODEL.is_file(), reason="SIGHTLINE_TEST_MODELS holds no yolov8n_int8.onnx"
)
STEPS = range(0, 24, 6)  # pixels that the camera turns


@pytest.fixture(scope="module")
def street() -> NDArray[np.uint8]:
    with PIL.Image.open(photograph("bus.jpg")) as opened:
        return np.asarray(opened.convert("RGB"))


def turn(detector: Detector, street: NDArray[np.uint8]) -> list[Sequence[Detection]]:
    return [detector.detect(street[:, step : step + 700]).detections for step in STEPS]


@pytest.mark.parametrize("tracker", ["bytetrack", "botsort"])
def test_objects_keep_their_identity(tracker: Tracker, street: NDArray[np.uint8]) -> None:
    frames = turn(UltralyticsDetector(MODEL, tracker=tracker), street)
    bus = [next(one for one in frame if one.class_name == "bus") for frame in frames]
    assert len({one.track_id for one in bus}) == 1
    for frame in frames:
        ids = [one.track_id for one in frame]
        assert None not in ids
        assert len(set(ids)) == len(ids) >= 3
        assert [one.confidence for one in frame] == sorted(
            (one.confidence for one in frame), reverse=True
        )


def test_the_first_image_is_the_trackers_first(street: NDArray[np.uint8]) -> None:
    """Loading runs the model, too: a tracker that has seen that hides what is new to it."""
    tracked = UltralyticsDetector(MODEL, tracker="bytetrack").detect(street).detections
    plain = UltralyticsDetector(MODEL).detect(street).detections
    assert len(tracked) == len(plain)
    assert sorted(one.track_id or 0 for one in tracked) == list(range(1, len(plain) + 1))
    for one, other in zip(tracked, plain, strict=True):
        assert one.class_name == other.class_name
        assert overlap(one.box, other.box) > 0.9


def test_the_threshold_holds_for_tracked_objects(street: NDArray[np.uint8]) -> None:
    sure = UltralyticsDetector(
        MODEL, tracker="bytetrack", thresholds=Thresholds(confidence=0.8)
    ).detect(street)
    assert len(sure.detections) >= 1
    assert min(one.confidence for one in sure.detections) > 0.8


def test_without_a_tracker_nothing_is_tracked(street: NDArray[np.uint8]) -> None:
    found = UltralyticsDetector(MODEL).detect(street).detections
    assert {one.track_id for one in found} == {None}


def test_each_detector_has_a_tracker_of_its_own(street: NDArray[np.uint8]) -> None:
    one, other = (UltralyticsDetector(MODEL, tracker="bytetrack") for _ in range(2))
    assert one.detect(street) == other.detect(street)
    assert one.detect(street) == other.detect(street)


def test_a_tracker_works_in_a_process_of_its_own(street: NDArray[np.uint8]) -> None:
    factory = partial(UltralyticsDetector, MODEL, tracker="bytetrack")
    detector = ProcessDetector(factory)
    try:
        assert turn(detector, street) == turn(factory(), street)
    finally:
        detector.close()


def test_settings_choose_tracker_and_process(street: NDArray[np.uint8]) -> None:
    options: dict[str, Any] = {
        "device_model": MODEL,
        "detector": "ultralytics",
        "device_tracker": "botsort",
        "device_process": True,
    }
    settings = EdgeSettings(**options)
    detector = load_detector(settings)
    assert isinstance(detector, ProcessDetector)
    try:
        assert None not in {one.track_id for one in detector.detect(street).detections}
    finally:
        detector.close()
