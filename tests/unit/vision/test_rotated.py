"""Rotated boxes: their geometry, their overlap by its definition, and suppression by pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.rotated import hull, probabilistic_iou, regularize
from vision.suppress import suppress_rotated

SEEDS = st.integers(0, 2**32 - 1)


def corners(box: np.ndarray) -> np.ndarray:
    x, y, width, height, angle = box.astype(float)
    along = np.array([np.cos(angle), np.sin(angle)]) * width / 2
    down = np.array([-np.sin(angle), np.cos(angle)]) * height / 2
    offsets = np.array([along + down, along - down, -along - down, -along + down])
    moved: np.ndarray = np.add(offsets, [x, y])
    return moved


def random_boxes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    box = np.concatenate(
        [
            rng.random((count, 2)) * 60,
            1 + rng.random((count, 2)) * 40,
            rng.random((count, 1)) * 9 - 4,
        ],
        axis=1,
    )
    return box.astype(np.float32)


def gaussian(box: np.ndarray) -> np.ndarray:
    _, _, width, height, angle = box.astype(float)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance: np.ndarray = turn @ np.diag([width**2 / 12, height**2 / 12]) @ turn.T
    return covariance


def overlap(first: np.ndarray, other: np.ndarray) -> float:
    """Return 1 minus the Hellinger distance of two normal distributions, by its definition."""
    each = gaussian(first), gaussian(other)
    mean = (each[0] + each[1]) / 2
    apart = (first[:2] - other[:2]).astype(float)
    ratio = np.linalg.det(mean) / np.sqrt(np.linalg.det(each[0]) * np.linalg.det(each[1]))
    distance = apart @ np.linalg.inv(mean) @ apart / 8 + np.log(ratio) / 2
    return float(1 - np.sqrt(max(1 - np.exp(-distance), 0)))


@settings(max_examples=20)
@given(SEEDS)
def test_regular_boxes_are_the_same_rectangles(seed: int) -> None:
    boxes = random_boxes(seed, 20)
    regular = regularize(boxes)
    assert regular.dtype == np.float32
    assert ((regular[:, 4] >= 0) & (regular[:, 4] < np.pi / 2)).all()
    for before, after in zip(boxes, regular, strict=True):
        gaps = np.linalg.norm(corners(before)[:, None] - corners(after), axis=2)
        assert gaps.min(axis=1).max() < 1e-3


@pytest.mark.parametrize(
    ("angle", "expected"),
    [
        (0, (8, 2, 0)),
        (np.pi / 2, (2, 8, 0)),
        (np.pi, (8, 2, 0)),
        (-np.pi / 4, (2, 8, np.pi / 4)),
        (np.float32(np.pi), (8, 2, 0)),
        (-1e-9, (8, 2, 0)),  # rounds to a quarter turn after the shift
    ],
)
def test_a_quarter_turn_exchanges_the_sides(
    angle: float, expected: tuple[float, float, float]
) -> None:
    (box,) = regularize(np.array([[5, 5, 8, 2, angle]], dtype=np.float32))
    assert box[2:].tolist() == pytest.approx(expected, abs=1e-6)
    assert 0 <= box[4] < np.pi / 2


@settings(max_examples=20)
@given(SEEDS)
def test_the_hull_is_that_of_the_corners(seed: int) -> None:
    boxes = random_boxes(seed, 20)
    expected = [[*corners(box).min(axis=0), *corners(box).max(axis=0)] for box in boxes]
    assert hull(boxes) == pytest.approx(np.array(expected), abs=1e-3)


@settings(max_examples=20)
@given(SEEDS)
def test_the_overlap_is_its_definition(seed: int) -> None:
    boxes = random_boxes(seed, 12)
    expected = [[overlap(first, other) for other in boxes] for first in boxes]
    assert probabilistic_iou(boxes, boxes) == pytest.approx(np.array(expected), abs=2e-3)


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([0.1, 0.3, 0.7]), st.sampled_from([1, 5, 100]))
def test_suppression_is_the_definition(seed: int, iou: float, limit: int) -> None:
    boxes = random_boxes(seed, 40)
    classes = np.random.default_rng(seed).integers(0, 3, 40)
    expected = [
        at
        for at in range(40)
        if all(
            classes[surer] != classes[at] or overlap(boxes[surer], boxes[at]) <= iou
            for surer in range(at)
        )
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vision.suppress._BLOCK", 7)
        assert suppress_rotated(boxes, classes, iou, limit) == expected[:limit]
    assert suppress_rotated(boxes, classes, iou, limit) == expected[:limit]


def test_no_boxes_and_boxes_without_an_area() -> None:
    assert suppress_rotated(np.zeros((0, 5), np.float32), np.zeros(0, np.int64), 0.7, 300) == []
    flat = np.zeros((3, 5), np.float32)
    assert suppress_rotated(flat, np.zeros(3, np.int64), 0.7, 300)[0] == 0
