"""Classifiers, masks, keypoints and turned boxes, as checkpoints and as exports."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")

import pytest
import supervision
from ultralytics.utils.ops import regularize_rboxes

from edge.detect import (
    Detector,
    OnnxDetector,
    ProcessDetector,
    Thresholds,
    UltralyticsDetector,
    close_detector,
)
from edge.log.adapters import from_ultralytics
from edge.log.supervision_adapters import from_supervision
from edge.records import DetectionArrays, Mask
from tests.integration.edge_detect.answers import differences, masks_of
from tests.once import made_once
from tests.photographs import photograph
from vision import ModelError, encode_rle
from vision.masks import _opencv

PROGRAM = Path(__file__).with_name("make_models.py")
PHOTOS = ("bus.jpg", "zidane.jpg")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        subprocess.run(
            [sys.executable, PROGRAM, folder, *map(photograph, PHOTOS)],
            cwd=folder,
            check=True,
            timeout=110,
            capture_output=True,
        )

    return made_once(tmp_path_factory, "models of every task", make)


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
        expected = plain.detect(photograph(name))
        shares = [one.confidence for one in expected.detections]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > 2 * shares[4]  # else their order says little
        assert {one.box for one in expected.detections} == {None}
        for other in others:
            found = other.detect(photograph(name))
            assert (found.image_width, found.image_height) == (
                expected.image_width,
                expected.image_height,
            )
            assert len(found.detections) == 10
            theirs = {(one.class_id, one.class_name): one.confidence for one in found.detections}
            ours = {(one.class_id, one.class_name): one.confidence for one in expected.detections}
            assert {one: theirs[one] for one in ours} == pytest.approx(ours, rel=0.05)
    assert (
        plain.detect(photograph(PHOTOS[0])).detections
        != plain.detect(photograph(PHOTOS[1])).detections
    )


@pytest.mark.parametrize("kind", [OnnxDetector, UltralyticsDetector])
def test_as_many_classes_come_as_are_asked_for_whatever_their_confidence(
    models: Path, kind: Any
) -> None:
    def count(**options: Any) -> int:
        detector = kind(models / "cls.onnx", thresholds=Thresholds(**options))
        return len(detector.detect(photograph("bus.jpg")).detections)

    assert count(top_k=1, confidence=0.99) == 1
    assert count(top_k=1000) == 1000


def test_a_logged_result_has_the_detectors_classes(models: Path) -> None:
    from ultralytics import YOLO

    model = YOLO(models / "cls.pt")
    (results,) = model.predict(photograph("bus.jpg"), verbose=False, device="cpu")
    ours = UltralyticsDetector(models / "cls.pt", device="cpu").detect(photograph("bus.jpg"))
    logged = from_ultralytics(results).detections
    assert [one.class_id for one in logged] == [one.class_id for one in ours.detections]


@pytest.mark.parametrize("name", ["seg.pt", "seg.onnx"])
def test_a_checkpoint_and_its_export_find_the_same(models: Path, name: str) -> None:
    """The export is opened with its own task, which ultralytics does not know beforehand."""
    detector = UltralyticsDetector(models / name, device="cpu")
    assert detector.detect(photograph("bus.jpg")).model_name == "seg"


def test_the_onnx_detector_says_what_masks_need(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    _opencv.cache_clear()
    try:
        with pytest.raises(ModelError, match=r"opencv-python-headless, or .* rle"):
            OnnxDetector(models / "seg.onnx")
        OnnxDetector(models / "seg.onnx", thresholds=Thresholds(mask_format="rle"))
    finally:
        _opencv.cache_clear()


@pytest.mark.parametrize("name", ["cls.pt", "cls.onnx"])
def test_what_has_no_boxes_cannot_be_tracked(models: Path, name: str) -> None:
    text = "task of a tracked model must be detect, segment, pose or obb, got classify"
    with pytest.raises(ModelError, match=text):
        UltralyticsDetector(models / name, tracker="bytetrack", device="cpu")


SIX = {"det": "detect", "seg": "segment", "pose": "pose", "obb": "obb", "cls": "classify"}
DOORS = ("result", "array", "supervision", "UltralyticsDetector", "OnnxDetector", "ProcessDetector")
MANY = Thresholds(confidence=0.05, max_detections=20, mask_format="rle")
CLOSE = {"box px": 0.5, "score": 0.01, "points px": 0.5, "visible": 0.01, "sides px": 0.5}
"""Largest differences from ultralytics' answer; a mask has a least IoU."""


def answer(path: Path, image: Path, **options: Any) -> Any:
    from ultralytics import YOLO

    model = YOLO(path, task=SIX[path.stem])
    limits = {"conf": MANY.confidence, "max_det": MANY.max_detections}
    (results,) = model.predict(image, verbose=False, device="cpu", **limits, **options)
    return results


def arrays(results: Any) -> DetectionArrays | None:
    """Return what a program makes of the arrays of results itself."""
    boxes = results.boxes if results.obb is None else results.obb
    if boxes is None:  # a classification
        return None
    height, width = results.orig_shape
    return DetectionArrays(
        boxes.xyxy.numpy().clip(0, (width, height, width, height)),
        boxes.conf,
        boxes.cls,
        names=results.names,
        rotated_boxes=results.obb and regularize_rboxes(results.obb.xywhr),
        keypoints=results.keypoints and results.keypoints.data,
        masks=results.masks and [run_lengths(mask) for mask in masks_of(results)],
    )


def run_lengths(mask: Any) -> Mask:
    height, width = mask.shape
    encoded = encode_rle(mask, left=0, top=0, width=width, height=height)
    return Mask(rle=encoded.counts, width=width, height=height)


def by_supervision(results: Any) -> list[Any]:
    """Return the detections of supervision's objects, whose keypoints are in an object apart."""
    if results.probs is not None:
        return []
    theirs = supervision.Detections.from_ultralytics(results)
    if results.masks is not None:
        theirs.mask = masks_of(results)  # supervision enlarges them with stairs
    height, width = results.orig_shape
    size = {"image_width": width, "image_height": height}
    found = from_supervision(theirs, "i", "m", mask_format="rle", **size).detections
    if results.keypoints is None:
        return list(found)
    points = from_supervision(supervision.KeyPoints.from_ultralytics(results), "i", "m").detections
    return [replace(one, keypoints=two.keypoints) for one, two in zip(found, points, strict=True)]


@pytest.mark.parametrize("task", SIX)
def test_every_door_gives_the_answer_of_ultralytics(
    models: Path, made: Callable[[Detector], Detector], task: str
) -> None:
    checkpoint, export = models / f"{task}.pt", models / f"{task}.onnx"
    image = photograph("bus.jpg")
    theirs = answer(checkpoint, image)
    whole = {"retina_masks": True} if task == "seg" else {}
    exported = answer(export, image, **whole)
    detectors: dict[str, Detector] = {
        "UltralyticsDetector": UltralyticsDetector(checkpoint, thresholds=MANY, device="cpu"),
        "OnnxDetector": OnnxDetector(export, thresholds=MANY),
        "ProcessDetector": made(ProcessDetector(partial(OnnxDetector, export, thresholds=MANY))),
    }
    found: dict[str, Any] = {
        "result": from_ultralytics(theirs).detections,
        "array": arrays(theirs),
        "supervision": by_supervision(theirs),
        **{name: one.detect(image).detections for name, one in detectors.items()},
    }
    row = {
        door: differences(found[door], exported if door[0] in "OP" else theirs)
        if found[door]
        else {}
        for door in DOORS
    }
    for door, measured in row.items():
        figures = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        print(f"| {SIX[task]:8} | {door:19} | {figures or 'has no form for it':70} |")  # noqa: T201 - the table
    for door, measured in row.items():
        assert measured or (task == "cls" and door in ("array", "supervision"))
        for name, value in measured.items():
            if name == "mask IoU":
                assert value >= 0.97, (door, row)
            elif name != "angle" or min(value, abs(value - math.pi / 2)) > 0.01:
                assert value <= CLOSE.get(name, 0.01), (door, row)


@pytest.mark.parametrize("task", ["seg", "pose", "obb"])
def test_objects_of_every_task_are_tracked(models: Path, task: str) -> None:
    lenient = Thresholds(confidence=0.05, max_detections=20)
    detector = UltralyticsDetector(
        models / f"{task}.pt", tracker="bytetrack", thresholds=lenient, device="cpu"
    )
    first, second = (detector.detect(photograph("bus.jpg")).detections for _ in range(2))
    assert first
    assert {one.track_id for one in first} & {one.track_id for one in second}
    height, width = 1080, 810
    for one in (*first, *second):
        assert one.track_id is not None
        assert one.box is not None
        assert 0 <= one.box.x_min <= one.box.x_max <= width
        assert 0 <= one.box.y_min <= one.box.y_max <= height
        assert (one.mask is not None) is (task == "seg")
        assert bool(one.keypoints) is (task == "pose")
        assert (one.rotated_box is not None) is (task == "obb")


def test_masks_can_be_off(models: Path) -> None:
    off = Thresholds(confidence=0.05, max_detections=20, mask_format="off")
    for detector in (
        UltralyticsDetector(models / "seg.pt", thresholds=off, device="cpu"),
        OnnxDetector(models / "seg.onnx", thresholds=off),
    ):
        found = detector.detect(photograph("bus.jpg")).detections
        assert found
        assert {one.mask for one in found} == {None}
