"""Average precision against cases small enough for pencil and paper."""

import math

import numpy as np
import pytest

from models.average_precision import Scene, average_precision, iou_matrix

A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)
NOWHERE = (100, 100, 110, 110)


def scene(
    truth: list[tuple[int, ...]],
    found: list[tuple[tuple[float, ...], float]],
    classes: list[int] | None = None,
    true_classes: list[int] | None = None,
) -> Scene:
    return Scene(
        true_boxes=np.array(truth, dtype=np.float32).reshape(-1, 4),
        true_classes=np.array(true_classes or [0] * len(truth), dtype=np.int64),
        boxes=np.array([box for box, _ in found], dtype=np.float32).reshape(-1, 4),
        classes=np.array(classes or [0] * len(found), dtype=np.int64),
        confidences=np.array([confidence for _, confidence in found], dtype=np.float32),
    )


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param(scene([A, B], [(A, 0.9), (B, 0.8)]), 1.0, id="everything found"),
        pytest.param(scene([A, B], []), 0.0, id="nothing found"),
        pytest.param(scene([A, B], [(A, 0.9)]), 0.5, id="half found"),
        pytest.param(scene([A], [(A, 0.9), (NOWHERE, 0.5)]), 1.0, id="a late mistake is free"),
        pytest.param(scene([A], [(NOWHERE, 0.9), (A, 0.5)]), 0.5, id="an early mistake is not"),
        # Precision at the three hits: 1, 2/3, 3/4; made monotonic: 1, 3/4, 3/4.
        pytest.param(
            scene([A, B, C], [(A, 0.9), (NOWHERE, 0.8), (B, 0.7), (C, 0.6)]),
            (1 + 3 / 4 + 3 / 4) / 3,
            id="precision is interpolated",
        ),
        # The second find of A is a mistake: hits at ranks 1 and 3, precision 1 and 2/3.
        pytest.param(
            scene([A, B], [(A, 0.9), (A, 0.8), (B, 0.7)]),
            (1 + 2 / 3) / 2,
            id="a box found twice",
        ),
        pytest.param(scene([A], [(B, 0.9)]), 0.0, id="found elsewhere"),
    ],
)
def test_one_image(case: Scene, expected: float) -> None:
    assert average_precision([case], 0) == pytest.approx(expected)


def test_confidence_ranks_across_images() -> None:
    """The surest find is wrong: precision at the hits is 1/2 and 2/3, made monotonic 2/3 twice."""
    scenes = [scene([A, B], [(A, 0.8), (B, 0.7)]), scene([], [(A, 0.9)])]
    assert average_precision(scenes, 0) == pytest.approx(2 / 3)


def test_the_surer_of_two_claims_a_box_in_whatever_order_they_come() -> None:
    forwards = scene([A, B], [(A, 0.9), (A, 0.3), (B, 0.5)])
    backwards = scene([A, B], [(B, 0.5), (A, 0.3), (A, 0.9)])
    assert average_precision([forwards], 0) == average_precision([backwards], 0) == 1.0


def test_the_threshold_is_inclusive() -> None:
    half = (0.0, 0.0, 10.0, 5.0)
    assert average_precision([scene([A], [(half, 0.9)])], 0) == 1.0
    assert average_precision([scene([A], [(half, 0.9)])], 0, iou=0.51) == 0.0


def test_classes_do_not_mix() -> None:
    mixed = scene([A, B], [(A, 0.9), (B, 0.8)], classes=[0, 0], true_classes=[0, 1])
    assert average_precision([mixed], 0) == 1.0
    assert average_precision([mixed], 1) == 0.0


def test_a_class_that_no_image_holds_has_no_precision() -> None:
    assert math.isnan(average_precision([scene([], [(A, 0.9)])], 0))


def test_overlaps() -> None:
    a = np.array([A, (5, 5, 15, 15)], dtype=np.float32)
    b = np.array([A, B], dtype=np.float32)
    assert iou_matrix(a, b) == pytest.approx(np.array([[1, 0], [25 / 175, 0]]))


def test_boxes_without_area_overlap_nothing() -> None:
    point = np.array([(1, 1, 1, 1)], dtype=np.float32)
    assert iou_matrix(point, point).item() == 0.0
