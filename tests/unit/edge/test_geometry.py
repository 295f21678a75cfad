"""Rotated boxes, keypoints and masks as records."""

import itertools
import math
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

from edge import records as records
from edge.detections import DetectionArrays
from edge.geometry import Keypoint, Mask, RotatedBox
from edge.records import MAX_SIZE, Detection, Prediction

TRIANGLE = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]]


def stored(points: list[list[float]]) -> Any:
    return array("f", itertools.chain.from_iterable(points))


def tuples(points: list[list[float]]) -> Any:
    return tuple(map(tuple, points))


@pytest.mark.parametrize("kind", [list, tuples, numpy.array, torch.tensor, stored])
def test_a_polygon_of_every_kind_is_copied(kind: Callable[[Any], Any]) -> None:
    given = kind(TRIANGLE)
    mask = Mask([given])
    if not isinstance(given, tuple):
        given[0] = given[1]
    assert mask.polygons[0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]
    assert replace(mask) == mask


def test_equal_masks_have_one_hash() -> None:
    one, other = Mask([[(0.0, 1.0)]]), Mask([[(-0.0, 1.0)]])
    assert one == other
    assert hash(one) == hash(other)


ANY: Any = records  # so that an argument may have a wrong type
ROW = [[0.0, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ANY.Mask(), "polygons or rle must be passed"),
        (lambda: ANY.Mask([TRIANGLE], rle="0"), "polygons or rle must be passed"),
        (lambda: ANY.Mask(5), "polygons must be a list of outlines"),
        (lambda: ANY.Mask(TRIANGLE), r"polygons\[0\] must be an array"),
        (lambda: ANY.Mask([[[1.0, math.nan]]]), r"polygons\[0\] must not contain NaN"),
        (lambda: ANY.Mask([array("f", [1, math.nan])]), r"polygons\[0\] must not contain NaN"),
        (lambda: ANY.Mask([array("f", [1])]), r"polygons\[0\] must be x and y in turn"),
        (lambda: ANY.Mask([numpy.zeros((4, 3))]), r"polygons\[0\] must have the shape"),
        (lambda: ANY.Mask(rle=b"04"), "rle must be text"),
        (lambda: ANY.Mask(rle="04", width=1.5), "width must be a whole number"),
        (lambda: ANY.Keypoint("1", 2), "x must be a number"),
        (lambda: ANY.Keypoint(1, 2, "3"), "confidence must be a number"),
        (lambda: ANY.RotatedBox(1, 2, 3, 4, None), "angle must be a number"),
        (lambda: ANY.Detection(0, "", 0, keypoints=None), "keypoints must be a list of Keypoints"),
        (lambda: ANY.Detection(0, "", 0, keypoints=[(1, 2)]), r"keypoints\[0\] must be a Keypoint"),
        (lambda: ANY.Detection(0, "", 0, mask="04"), "mask must be a Mask or None"),
        (lambda: ANY.Detection(0, "", 0, rotated_box=(1, 2)), "rotated_box must be a RotatedBox"),
    ],
)
def test_bad_shapes_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoints": 5}, "keypoints must be an array"),
        ({"keypoints": [[1, 2]]}, "keypoints must be an array"),
        ({"keypoints": numpy.zeros((1, 34))}, r"keypoints must have the shape \[1, k, 2 or 3\]"),
        ({"keypoints": torch.zeros(1, 17, 4)}, r"keypoints .* \(got \[1, 17, 4\]\)"),
        ({"keypoints": numpy.zeros((2, 17, 3))}, r"keypoints .* \(got \[2, 17, 3\]\)"),
        ({"keypoints": []}, r"keypoints .* \(got \[0, 0, 2\]\)"),
        ({"keypoints": [[], [(1, 2)]]}, "keypoints must have as many points in each row"),
        ({"keypoints": [[(1, 2), (1, 2, 3)]]}, "keypoints must have as many points in each row"),
        ({"keypoints": [[(1, math.nan)]]}, "keypoints must not contain NaN"),
        ({"keypoints": [[(1, "x")]]}, "keypoints must be numbers"),
        ({"rotated_boxes": numpy.zeros((1, 4))}, r"rotated_boxes must have the shape \[n, 5\]"),
        ({"rotated_boxes": numpy.zeros((2, 5))}, "rotated_boxes must have one value per box"),
        ({"rotated_boxes": [[0, 0, 0, 0, math.nan]]}, "rotated_boxes must not contain NaN"),
        ({"masks": 5}, "masks must be a list of Masks"),
        ({"masks": [None, None]}, r"masks must have one value per box, 1 \(got 2\)"),
        ({"masks": ["04"]}, r"masks\[0\] must be a Mask or None"),
    ],
)
def test_bad_arrays_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        DetectionArrays(ROW, [0.5], [0], **arguments)


@pytest.mark.parametrize("kind", [list, numpy.array, torch.tensor])
def test_arrays_of_shapes_are_rows_of_records(kind: Callable[[Any], Any]) -> None:
    arrays = DetectionArrays(
        ROW * 2,
        [0.5, 0.25],
        [0, 1],
        rotated_boxes=kind([[1.0, 2, 3, 4, 0.5], [5.0, 6, 7, 8, 1.5]]),
        keypoints=kind([[[1.0, 2, 0.5]], [[3.0, 4, 1]]]),
        masks=[None, Mask([TRIANGLE])],
    )
    first, second = arrays
    assert first.rotated_box == RotatedBox(1, 2, 3, 4, 0.5)
    assert (first.keypoints, first.mask) == ((Keypoint(1, 2, 0.5),), None)
    assert (second.rotated_box, second.mask) == (RotatedBox(5, 6, 7, 8, 1.5), Mask([TRIANGLE]))


@pytest.mark.parametrize("nothing", [[], numpy.zeros((0, 17, 3)), numpy.zeros(0), torch.zeros(0)])
def test_no_keypoints_of_nothing(nothing: Any) -> None:
    assert tuple(DetectionArrays([], [], [], keypoints=nothing, rotated_boxes=[], masks=[])) == ()


def test_a_prediction_that_no_message_could_hold_says_what_is_large() -> None:
    mask = Mask([[(1.0, 1.0)] * 100_000])
    with pytest.raises(ValueError, match=r"6 detections .* 4800\d+ bytes of masks"):
        Prediction("i", "m", detections=[Detection(0, "", 0.5, mask=mask)] * 6)
    assert Prediction("i", "m", detections=[Detection(0, "", 0.5, mask=mask)] * 5).size < MAX_SIZE
