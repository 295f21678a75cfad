from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sightline.types.v1 import prediction_pb2

from inference_service import answers
from inference_service.domain import ImagePrediction
from servicekit.errors import invalid
from vision import Classes, Detections, PolygonMask, RleMask


def test_detections_keep_their_order_and_their_names() -> None:
    prediction = Detections(
        np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32),
        np.array([0.9, 0.25], dtype=np.float32),
        np.array([1, 0]),
    )
    result = answers.image_result(
        "a", ImagePrediction(640, 480, prediction), {0: "pit", 1: "scratch"}
    )
    assert (result.image_id, result.image_width, result.image_height) == ("a", 640, 480)
    assert [(d.class_id, d.class_name) for d in result.detections] == [(1, "scratch"), (0, "pit")]
    assert [d.confidence for d in result.detections] == pytest.approx([0.9, 0.25])
    box = result.detections[1].box
    assert (box.x_min, box.y_min, box.x_max, box.y_max) == (5, 6, 7, 8)
    assert not result.HasField("error")


def found(**parts: Any) -> list[prediction_pb2.Detection]:
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)
    scores = np.array([0.9, 0.25], dtype=np.float32)
    prediction = Detections(boxes, scores, np.array([1, 0]), **parts)
    names = {0: "pit", 1: "scratch"}
    return list(answers.image_result("a", ImagePrediction(9, 8, prediction), names).detections)


def test_rotated_boxes() -> None:
    rotated = np.array([[1, 2, 3, 4, 0.5], [5, 6, 7, 8, 1.25]], dtype=np.float32)
    first, second = found(rotated=rotated)
    box = first.rotated_box
    assert [box.center_x, box.center_y, box.width, box.height, box.angle] == [1, 2, 3, 4, 0.5]
    assert second.rotated_box.angle == 1.25
    assert second.box.x_min == 5


def test_keypoints_have_a_confidence_if_the_model_gives_one() -> None:
    points = np.array([[[1, 2, 0.5], [3, 4, 0]], [[5, 6, 1], [7, 8, 0.25]]], dtype=np.float32)
    first, second = found(keypoints=points)
    assert [(p.x, p.y, p.confidence) for p in first.keypoints] == [(1, 2, 0.5), (3, 4, 0)]
    assert [p.HasField("confidence") for p in first.keypoints] == [True, True]
    assert [(p.x, p.y) for p in second.keypoints] == [(5, 6), (7, 8)]
    plain, _ = found(keypoints=points[..., :2])
    assert [(p.x, p.y, p.HasField("confidence")) for p in plain.keypoints] == [
        (1, 2, False),
        (3, 4, False),
    ]


def test_masks_of_both_forms_and_empty_ones() -> None:
    ring = np.array([[1, 2], [3, 2], [3, 4]], dtype=np.float32)
    first, second = found(masks=(PolygonMask((ring, ring + 4)), RleMask(8, 9, "2113")))
    assert [list(polygon.points) for polygon in first.mask.polygons] == [
        [1, 2, 3, 2, 3, 4],
        [5, 6, 7, 6, 7, 8],
    ]
    assert (first.mask.rle, first.mask.width, first.mask.height) == ("", 0, 0)
    assert (second.mask.rle, second.mask.width, second.mask.height) == ("2113", 9, 8)
    nothing, _ = found(masks=(PolygonMask(()), PolygonMask(())))
    assert not nothing.HasField("mask")


def test_nothing_found() -> None:
    nothing = Detections(
        np.empty((0, 4), dtype=np.float32),
        np.empty(0, dtype=np.float32),
        np.empty(0, dtype=np.int64),
    )
    result = answers.image_result("a", ImagePrediction(1, 1, nothing), {})
    assert len(result.detections) == 0


def test_classes_keep_their_order_and_their_names() -> None:
    prediction = Classes(np.array([2, 0]), np.array([0.75, 0.125]))
    result = answers.image_result(
        "a", ImagePrediction(4, 3, prediction), {0: "pit", 1: "stain", 2: "fine"}
    )
    scores = [(c.class_id, c.class_name, c.probability) for c in result.classes]
    assert scores == [(2, "fine", 0.75), (0, "pit", 0.125)]
    assert not result.detections


def test_an_error_carries_code_reason_and_message() -> None:
    result = answers.image_error("a", invalid("images[0].data", "is bad", reason="IMAGE_EMPTY"))
    assert result.image_id == "a"
    assert (result.error.code, result.error.reason) == (3, "IMAGE_EMPTY")
    assert result.error.message == "images[0].data is bad"
    assert (result.image_width, result.image_height) == (0, 0)


@example(0.9999999999)
@given(st.floats(0, 100_000))
def test_durations_are_exact_to_a_nanosecond(seconds: float) -> None:
    duration = answers._duration(seconds)
    assert 0 <= duration.nanos < 10**9
    assert abs(duration.seconds + duration.nanos / 1e9 - seconds) < 2e-9 + seconds * 1e-15
