"""Classifiers, masks, keypoints and turned boxes, as checkpoints and as exports."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")

import pytest

from edge.detect import (
    Detector,
    OnnxDetector,
    ProcessDetector,
    Thresholds,
    UltralyticsDetector,
    close_detector,
)
from edge.log.adapters import from_ultralytics
from vision import ModelError

PROGRAM = Path(__file__).with_name("make_models.py")
PHOTOS = ("bus.jpg", "zidane.jpg")


def photo(name: str) -> Path:
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "assets" / name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run(
        [sys.executable, PROGRAM, folder, *map(photo, PHOTOS)],
        cwd=folder,
        check=True,
        timeout=110,
        capture_output=True,
    )
    return folder


@pytest.fixture
def made() -> Iterator[Callable[[Detector], Detector]]:
    detectors: list[Detector] = []

    def keep(detector: Detector) -> Detector:
        detectors.append(detector)
        return detector

    yield keep
    for detector in detectors:
        close_detector(detector)


def test_all_detectors_name_the_same_five_classes(
    models: Path, made: Callable[[Detector], Detector]
) -> None:
    plain = OnnxDetector(models / "cls.onnx")
    # Ten, because the fifth and the sixth may be as probable to the last few bits.
    more = Thresholds(top_k=10)
    ultralytics = partial(UltralyticsDetector, device="cpu", thresholds=more)
    others = [
        ultralytics(models / "cls.onnx"),
        ultralytics(models / "cls.pt"),
        made(ProcessDetector(partial(OnnxDetector, models / "cls.onnx", thresholds=more))),
        made(ProcessDetector(partial(ultralytics, models / "cls.pt"))),
    ]
    for name in PHOTOS:
        expected = plain.detect(photo(name))
        shares = [one.confidence for one in expected.detections]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > 2 * shares[4]  # else their order says little
        assert {one.box for one in expected.detections} == {None}
        for other in others:
            found = other.detect(photo(name))
            assert (found.image_width, found.image_height) == (
                expected.image_width,
                expected.image_height,
            )
            assert len(found.detections) == 10
            theirs = {(one.class_id, one.class_name): one.confidence for one in found.detections}
            ours = {(one.class_id, one.class_name): one.confidence for one in expected.detections}
            assert {one: theirs[one] for one in ours} == pytest.approx(ours, rel=0.05)
    assert plain.detect(photo(PHOTOS[0])).detections != plain.detect(photo(PHOTOS[1])).detections


@pytest.mark.parametrize("kind", [OnnxDetector, UltralyticsDetector])
def test_as_many_classes_come_as_are_asked_for_whatever_their_confidence(
    models: Path, kind: Any
) -> None:
    def count(**options: Any) -> int:
        detector = kind(models / "cls.onnx", thresholds=Thresholds(**options))
        return len(detector.detect(photo("bus.jpg")).detections)

    assert count(top_k=1, confidence=0.99) == 1
    assert count(top_k=1000) == 1000


def test_a_logged_result_has_the_detectors_classes(models: Path) -> None:
    from ultralytics import YOLO

    model = YOLO(models / "cls.pt")
    (results,) = model.predict(photo("bus.jpg"), verbose=False, device="cpu")
    ours = UltralyticsDetector(models / "cls.pt", device="cpu").detect(photo("bus.jpg"))
    logged = from_ultralytics(results).detections
    assert [one.class_id for one in logged] == [one.class_id for one in ours.detections]


@pytest.mark.parametrize("name", ["seg.pt", "seg.onnx", "pose.pt"])
def test_masks_and_keypoints_are_left_out_and_boxes_taken(models: Path, name: str) -> None:
    lenient = Thresholds(confidence=0, max_detections=3)  # the weights are random
    detector = UltralyticsDetector(models / name, thresholds=lenient, device="cpu")
    result = detector.detect(photo("bus.jpg"))
    assert len(result.detections) == 3
    for found in result.detections:
        assert found.box is not None
        assert 0 <= found.box.x_min <= found.box.x_max <= result.image_width
        assert 0 <= found.box.y_min <= found.box.y_max <= result.image_height


@pytest.mark.parametrize("name", ["seg.pt", "seg.onnx"])
def test_a_checkpoint_and_its_export_find_the_same(models: Path, name: str) -> None:
    """The export is opened with its own task, which ultralytics does not know beforehand."""
    detector = UltralyticsDetector(models / name, device="cpu")
    assert detector.detect(photo("bus.jpg")).model_name == "seg"


def test_turned_boxes_are_refused(models: Path) -> None:
    text = "task must be detect, segment, pose or classify, got obb"
    with pytest.raises(ModelError, match=text) as caught:
        UltralyticsDetector(models / "obb.pt", device="cpu")
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_the_onnx_detector_says_which_tasks_it_has(models: Path) -> None:
    with pytest.raises(ModelError, match="task must be detect or classify, got segment"):
        OnnxDetector(models / "seg.onnx")


@pytest.mark.parametrize("name", ["cls.pt", "cls.onnx"])
def test_what_has_no_boxes_cannot_be_tracked(models: Path, name: str) -> None:
    text = "task of a tracked model must be detect, segment or pose, got classify"
    with pytest.raises(ModelError, match=text):
        UltralyticsDetector(models / name, tracker="bytetrack", device="cpu")
