"""supervision's objects as records, and the way back."""

import math
from pathlib import Path
from typing import Any

import pytest

from edge.detect.base import DetectorResult
from edge.log.logger import PredictionLogger
from edge.log.supervision_adapters import (
    from_supervision,
    to_supervision,
    to_supervision_keypoints,
)
from edge.records import (
    Box,
    Detection,
    DetectionArrays,
    Keypoint,
    Mask,
    Prediction,
)

numpy = pytest.importorskip("numpy")


supervision = pytest.importorskip("supervision")
NAMES = {0: "cat", 1: "dog"}


def test_supervision() -> None:
    theirs = supervision.Detections(
        xyxy=numpy.array([[1.0, 2, 3, 4], [5.0, 6, 7, 8]]),
        confidence=numpy.array([0.5, 0.25]),
        class_id=numpy.array([1, 0]),
        tracker_id=numpy.array([17, 5]),
        data={"class_name": numpy.array(["dog", "cat"])},
    )
    prediction = from_supervision(
        theirs, "v.mp4#9", "yolov8n", model_version="8.4", image_width=640, image_height=480
    )
    assert (prediction.image_id, prediction.model_name) == ("v.mp4#9", "yolov8n")
    assert (prediction.model_version, prediction.image_width) == ("8.4", 640)
    assert isinstance(prediction.detections, DetectionArrays)
    assert prediction.detections == (
        Detection(1, "dog", 0.5, Box(1.0, 2.0, 3.0, 4.0), 17),
        Detection(0, "cat", 0.25, Box(5.0, 6.0, 7.0, 8.0), 5),
    )


def test_supervision_without_labels_or_tracks() -> None:
    theirs = supervision.Detections(
        xyxy=numpy.array([[1.0, 2, 3, 4]]),
        confidence=numpy.array([0.5]),
        class_id=numpy.array([1]),
    )
    box = Box(1.0, 2.0, 3.0, 4.0)
    assert from_supervision(theirs, "i", "m").detections == (Detection(1, "", 0.5, box),)
    named = from_supervision(theirs, "i", "m", names=NAMES)
    assert named.detections == (Detection(1, "dog", 0.5, box),)


@pytest.mark.parametrize(
    "theirs",
    [
        supervision.Detections.empty(),
        supervision.Detections(xyxy=numpy.empty((0, 4))),
        supervision.KeyPoints.empty(),
    ],
    ids=["detections", "without classes", "keypoints"],
)
def test_supervision_found_nothing(theirs: Any) -> None:
    assert from_supervision(theirs, "i", "m").detections == ()


@pytest.mark.parametrize("missing", ["confidence", "class_id"])
def test_supervision_without_what_a_detection_needs(missing: str) -> None:
    parts = {"confidence": numpy.array([0.5]), "class_id": numpy.array([1])}
    del parts[missing]
    theirs = supervision.Detections(xyxy=numpy.array([[1.0, 2, 3, 4]]), **parts)
    with pytest.raises(ValueError, match=f"detections.{missing} must be an array"):
        from_supervision(theirs, "i", "m")


def test_supervision_alone_does_not_name_its_image(tmp_path: Path) -> None:
    with (
        PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path) as log,
        pytest.raises(TypeError, match=r"convert them with sightline\.from_supervision"),
    ):
        log(supervision.Detections.empty())


TWO = (
    Detection(1, "dog", 0.5, Box(1.0, 2.0, 3.0, 4.0), 17),
    Detection(0, "cat", 0.25, Box(5.0, 6.0, 7.0, 8.0), 5),
)


@pytest.mark.parametrize(
    "result",
    [
        TWO,
        list(TWO),
        Prediction("i", "m", detections=TWO),
        DetectorResult(TWO, 640, 480, "m"),
        DetectionArrays(
            [[1, 2, 3, 4], [5, 6, 7, 8]], [0.5, 0.25], [1, 0], track_id=[17, 5], names=NAMES
        ),
    ],
    ids=["tuple", "list", "prediction", "result", "arrays"],
)
def test_to_supervision_and_back(result: Any) -> None:
    theirs = to_supervision(result)
    assert isinstance(theirs, supervision.Detections)
    assert theirs.xyxy.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert theirs.confidence.tolist() == [0.5, 0.25]
    assert theirs.class_id.tolist() == [1, 0]
    assert theirs.tracker_id.tolist() == [17, 5]
    assert theirs.data["class_name"].tolist() == ["dog", "cat"]
    assert from_supervision(theirs, "i", "m").detections == TWO
    assert theirs[theirs.confidence > 0.3].data["class_name"].tolist() == ["dog"]


def test_to_supervision_without_tracks_or_with_some() -> None:
    plain = Detection(1, "dog", 0.5, Box(1.0, 2.0, 3.0, 4.0))
    assert to_supervision([plain]).tracker_id is None
    some = to_supervision([TWO[0], plain])
    assert some.tracker_id.tolist() == [17, -1]
    assert from_supervision(some, "i", "m").detections == (TWO[0], plain)
    some.tracker_id[:] = -1
    assert [row.track_id for row in from_supervision(some, "i", "m").detections] == [None, None]


def test_to_supervision_of_nothing() -> None:
    theirs = to_supervision(())
    assert len(theirs) == 0
    assert theirs.xyxy.shape == (0, 4)
    assert from_supervision(theirs, "i", "m").detections == ()


def test_to_supervision_of_a_classification_is_refused() -> None:
    with pytest.raises(ValueError, match="box must not be None"):
        to_supervision([Detection(1, "dog", 0.5)])


def ellipse(width: int, height: int, center: tuple[int, int], radii: tuple[int, int]) -> Any:
    rows, columns = numpy.mgrid[:height, :width]
    across, down = ((columns - center[0]) / radii[0]), ((rows - center[1]) / radii[1])
    return across**2 + down**2 <= 1


def overlap(one: Any, other: Any) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize(("form", "least"), [("polygon", 0.98), ("rle", 1.0)])
def test_masks_of_supervision_and_back(compact: bool, form: Any, least: float) -> None:
    masks = numpy.stack(
        [ellipse(200, 150, (60, 70), (40, 30)), ellipse(200, 150, (150, 20), (30, 50))]
    )
    boxes = numpy.array([[20.0, 40, 100, 100], [120, 0, 180, 70]])
    theirs = supervision.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=numpy.array([0.9, 0.8]),
        class_id=numpy.array([0, 1]),
    )
    if compact:
        compacted = supervision.detection.compact_mask.CompactMask
        theirs.mask = compacted.from_dense(masks, boxes, image_shape=(150, 200))
    ours = from_supervision(theirs, "i", "m", mask_format=form)
    assert (ours.image_width, ours.image_height) == (200, 150)
    back = to_supervision(ours).mask
    assert back.shape == masks.shape
    assert back.dtype == bool
    assert min(map(overlap, back, numpy.asarray(theirs.mask))) >= least
    off = from_supervision(theirs, "i", "m", mask_format="off")
    assert [row.mask for row in off.detections] == [None, None]
    assert off.left_out is None


def test_a_mask_without_a_pixel_is_no_mask() -> None:
    theirs = supervision.Detections(
        xyxy=numpy.array([[1.0, 2, 3, 4]] * 2),
        mask=numpy.stack([numpy.zeros((8, 8), bool), numpy.eye(8, dtype=bool)]),
        confidence=numpy.array([0.9, 0.8]),
        class_id=numpy.array([0, 1]),
    )
    ours = from_supervision(theirs, "i", "m", mask_format="rle")
    assert ours.detections[0].mask is None
    assert to_supervision(ours).mask.sum(axis=(1, 2)).tolist() == [0, 8]


def test_masks_need_the_size_of_the_image() -> None:
    mask = Mask(polygons=[[(1, 1), (5, 1), (5, 5), (1, 5)]])
    rows = [Detection(0, "", 0.5, Box(1, 1, 5, 5), mask=mask)]
    with pytest.raises(ValueError, match="image_width and image_height must be the size"):
        to_supervision(rows)
    assert to_supervision(rows, image_width=8, image_height=9).mask.sum() == 25
    assert to_supervision(DetectorResult(tuple(rows), 8, 9, "m")).mask.shape == (1, 9, 8)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.5, -0.4, 2.0])
def test_oriented_boxes_of_supervision_and_back(angle: float) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("ultralytics.utils.ops")
    rotated = torch.tensor([[300.0, 200, 100, 40, angle]])
    corners = ops.xywhr2xyxyxyxy(rotated).numpy()
    theirs = supervision.Detections(
        xyxy=numpy.concatenate([corners.min(1), corners.max(1)], axis=1),
        confidence=numpy.array([0.9]),
        class_id=numpy.array([0]),
        data={"xyxyxyxy": corners},
    )
    (ours,) = from_supervision(theirs, "i", "m").detections
    box = ours.rotated_box
    assert box is not None
    expected = ops.regularize_rboxes(rotated)[0].tolist()
    found = [box.center_x, box.center_y, box.width, box.height, box.angle]
    assert found == pytest.approx(expected, abs=1e-3)
    back = to_supervision([ours]).data["xyxyxyxy"]
    assert numpy.sort(back, axis=1) == pytest.approx(numpy.sort(corners, axis=1), abs=1e-2)
    plain = Detection(0, "", 0.5, Box(1, 2, 5, 8))
    mixed = to_supervision([ours, plain]).data["xyxyxyxy"][1]
    assert sorted(mixed.tolist()) == [[1, 2], [1, 8], [5, 2], [5, 8]]


def test_keypoints_of_supervision_and_back() -> None:
    theirs = supervision.KeyPoints(
        xy=numpy.array([[[10, 20], [30, 60], [0, 0]], [[5, 5], [6, 9], [7, 7]]], numpy.float32),
        keypoint_confidence=numpy.array([[0.9, 0.8, 0.1], [0.5, 0.25, 0.75]], numpy.float32),
        class_id=numpy.array([0, 1]),
        data={"class_name": numpy.array(["cat", "dog"])},
    )
    first, second = from_supervision(theirs, "i", "m", image_width=64).detections
    assert first.box == Box(10.0, 20.0, 30.0, 60.0)  # a point at (0, 0) is not known
    assert first.confidence == pytest.approx(0.6)
    assert second.class_name == "dog"
    assert second.keypoints[2] == Keypoint(7.0, 7.0, 0.75)
    back = to_supervision_keypoints([first, second])
    assert back.xy.tolist() == theirs.xy.tolist()
    assert back.keypoint_confidence == pytest.approx(theirs.keypoint_confidence)
    assert back.data["class_name"].tolist() == ["cat", "dog"]
    theirs.keypoint_confidence, theirs.detection_confidence = None, numpy.array([0.5, 0.75])
    plain = from_supervision(theirs, "i", "m").detections
    assert [row.confidence for row in plain] == [0.5, 0.75]
    assert to_supervision_keypoints(plain).keypoint_confidence is None


def test_the_best_classes_of_a_classifier() -> None:
    theirs = supervision.Classifications(
        class_id=numpy.array([0, 1, 2, 3, 4, 1 << 40, 9]),
        confidence=numpy.array([0.05, 0.4, 0.01, 0.1, 0.11, 0.2, 0.15]),
    )
    prediction = from_supervision(theirs, "i", "m", names=NAMES, image_width=64)
    assert [(one.class_id, one.class_name) for one in prediction.detections] == [
        (1, "dog"),
        (9, ""),
        (4, ""),
        (3, ""),
    ]
    assert all(one.box is None for one in prediction.detections)
    assert prediction.left_out == {"detection": 1}
    assert prediction.image_width == 64
    unsure = supervision.Classifications(class_id=numpy.array([0]))
    with pytest.raises(ValueError, match=r"detections\.confidence must be an array"):
        from_supervision(unsure, "i", "m")


def test_keypoints_that_supervision_cannot_hold() -> None:
    one, two = Keypoint(1, 2), Keypoint(3, 4)
    rows = [Detection(0, "", 0.5, keypoints=points) for points in ((one,), (one, two))]
    with pytest.raises(ValueError, match=r"keypoints must be as many .*\[1, 2\]"):
        to_supervision_keypoints(rows)
    assert len(to_supervision_keypoints([])) == 0


def test_values_that_should_not_be_do_not_end_a_loop() -> None:
    theirs = supervision.Detections(
        xyxy=numpy.array([[1.0, 2, 3, 4], [-5, 2, 3, 4], [1, 2, 3, 4]]),
        confidence=numpy.array([0.9, 0.8, 0.7]),
        class_id=numpy.array([0, 7, 1 << 40]),
        tracker_id=numpy.array([1, -1, 3]),
    )
    theirs.xyxy[0, 0] = math.nan  # supervision itself refuses it earlier
    prediction = from_supervision(theirs, "i", "m", names=NAMES)
    one, other = prediction.detections
    assert one.box is not None
    assert math.isnan(one.box.x_min)
    assert (one.class_name, one.track_id) == ("cat", 1)
    assert (other.class_name, other.track_id, other.box) == ("", None, Box(0.0, 2.0, 3.0, 4.0))
    assert prediction.left_out == {"detection": 1}
    theirs.tracker_id = numpy.array([None, 5, 6], object)
    tracks = [found.track_id for found in from_supervision(theirs, "i", "m").detections]
    assert tracks == [None, 5]
