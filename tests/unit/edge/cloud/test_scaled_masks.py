"""Masks, keypoints and rotated boxes of a downscaled image, in pixels of the original."""

import math
from array import array

import cv2
import numpy as np
import pytest

from edge.cloud.downscale import Scale
from edge.cloud.scaled_masks import enlarged_mask
from edge.cloud.types import ImageAnswer
from edge.records import Box, Detection, Keypoint, Mask, RotatedBox
from vision import RleMask, decode_rle, encode_rle, trace_polygons

SHAPES = {
    "disc": lambda x, y: (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06,
    "box to the corner": lambda x, y: (x > 0.4) & (y > 0.3),
    "diagonal": lambda x, y: abs(x - y) < 0.1,
    "ring": lambda x, y: abs(np.hypot(x - 0.5, y - 0.5) - 0.3) < 0.1,
    "two parts": lambda x, y: (abs(x - 0.25) < 0.15) | (abs(x - 0.75) < 0.1) & (y > 0.5),
}
SIZES = [((1000, 700), (320, 224)), ((1000, 750), (384, 288)), ((655, 485), (640, 474))]


def bitmap(shape: str, size: tuple[int, int]) -> np.ndarray:
    """Return `[height, width]`, True where a pixel's centre is inside a shape."""
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    inside: np.ndarray = SHAPES[shape](x, y)
    return inside


def of_form(pixels: np.ndarray, form: str) -> Mask:
    height, width = pixels.shape
    if form == "rle":
        rle = encode_rle(pixels, left=0, top=0, width=width, height=height)
        return Mask(rle=rle.counts, width=width, height=height)
    return Mask(polygons=trace_polygons(pixels, left=0, top=0, tolerance=0.0).rings)


def drawn(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    if mask.rle:
        return decode_rle(RleMask(mask.height, mask.width, mask.rle))
    pixels = np.zeros(size[::-1], np.uint8)
    for polygon in mask.polygons:
        cv2.fillPoly(pixels, [np.round(np.reshape(polygon, (-1, 2))).astype(np.int32)], 1)
    return pixels > 0


@pytest.mark.parametrize("form", ["rle", "polygon"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_covers_what_it_would_have_in_the_full_image(
    shape: str, sizes: tuple[tuple[int, int], tuple[int, int]], form: str
) -> None:
    full, small = sizes
    gain = full[0] / small[0], full[1] / small[1]
    mask = enlarged_mask(of_form(bitmap(shape, small), form), full, gain)
    assert mask is not None
    assert bool(mask.rle) == (form == "rle")
    exact = drawn(of_form(bitmap(shape, full), form), full)
    found = drawn(mask, full)
    assert (exact & found).sum() >= 0.98 * (exact | found).sum()


@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_single_pixels_become_as_large_as_they_are(form: str) -> None:
    pixels = np.zeros((20, 30), np.bool_)
    pixels[3, 4] = pixels[10:12, 8] = pixels[19, 29] = True
    mask = enlarged_mask(of_form(pixels, form), (120, 80), (4.0, 4.0))
    assert mask is not None
    found = drawn(mask, (120, 80))
    exact = np.kron(pixels, np.ones((4, 4))) > 0
    assert (exact & found).sum() >= 0.7 * (exact | found).sum()
    assert found[12:16, 16:20].any()
    assert found[76:, 116:].any()


def test_an_empty_mask_stays_empty_and_a_wrong_one_is_an_error() -> None:
    empty = of_form(np.zeros((20, 30), np.bool_), "rle")
    mask = enlarged_mask(empty, (120, 80), (4.0, 4.0))
    assert mask is not None
    assert not drawn(mask, (120, 80)).any()
    for wrong in (Mask(rle="11", width=30, height=20), Mask(rle=empty.rle, width=20, height=30)):
        with pytest.raises(ValueError, match="pixels"):
            enlarged_mask(wrong, (120, 80), (4.0, 4.0))


def test_run_lengths_that_become_too_long_become_polygons() -> None:
    comb = np.zeros((600, 640), np.bool_)
    comb[::4, :-1] = comb[1::4, :-1] = True
    comb[:, 1] = True
    mask = enlarged_mask(of_form(comb, "rle"), (12_800, 12_000), (20.0, 20.0))
    assert mask is not None
    assert not mask.rle
    assert 3 <= sum(len(polygon) // 2 for polygon in mask.polygons) <= 8192


def restored(detection: Detection, scale: Scale) -> Detection:
    (one,) = scale.restored(ImageAnswer("a", 1, 1, (detection,))).detections
    return one


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2, math.pi / 2 - 1e-3])
def test_a_rotated_box_and_keypoints_grow_with_the_image(angle: float) -> None:
    scale = Scale(1001, 667, 1001 / 200, 667 / 133)
    points = (Keypoint(10, 20, 0.5), Keypoint(30, 5))
    one = restored(
        Detection(
            3,
            "scratch",
            0.75,
            Box(1, 2, 3, 4),
            7,
            rotated_box=RotatedBox(100, 50, 40, 10, angle),
            keypoints=points,
            mask=Mask(polygons=[array("f", [1, 1, 5, 1, 5, 5])]),
        ),
        scale,
    )
    assert (one.class_id, one.class_name, one.confidence, one.track_id) == (3, "scratch", 0.75, 7)
    box = one.rotated_box
    assert box is not None
    assert box.angle == pytest.approx(angle, abs=0.01)
    assert 0 <= box.angle < math.pi / 2
    assert [box.center_x, box.center_y] == pytest.approx([100 * scale.across, 50 * scale.down])
    assert [box.width, box.height] == pytest.approx([40 * 5.01, 10 * 5.01], rel=0.01)
    assert [(p.x, p.y, p.confidence) for p in one.keypoints] == [
        (10 * scale.across, 20 * scale.down, 0.5),
        (30 * scale.across, 5 * scale.down, None),
    ]
    assert one.mask is not None
    assert max(one.mask.polygons[0]) > 25


def test_what_a_task_does_not_have_stays_absent() -> None:
    one = restored(Detection(0, "part", 0.5, Box(1, 2, 3, 4)), Scale(100, 100, 2.0, 2.0))
    assert one == Detection(0, "part", 0.5, Box(2, 4, 6, 8))
