"""Masks within boxes, against the masks of whole images."""

import tracemalloc

import numpy as np
import pytest

from vision import Letterbox, letterbox_image
from vision.prototypes import crop_masks


def enlarged(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return an image of another size, bilinear between the centres of pixels."""
    for axis, length in enumerate((rows, columns)):
        at = ((np.arange(length) + 0.5) * pixels.shape[axis] / length - 0.5).clip(0)
        lower = at.astype(int)
        upper = np.minimum(lower + 1, pixels.shape[axis] - 1)
        share = (at - lower).reshape((-1, 1) if axis == 0 else (1, -1))
        first, second = pixels.take(lower, axis), pixels.take(upper, axis)
        pixels = first * (1 - share) + second * share
    return pixels


def whole_logits(logits: np.ndarray, box: Letterbox, factor: int) -> np.ndarray:
    """Return the logits of the whole image: enlarged, cut, and enlarged again."""
    rows, columns = (side * factor for side in logits.shape)
    large = enlarged(logits, rows, columns)
    gain = min(rows / box.height, columns / box.width)
    inside = max(round(box.height * gain), 1), max(round(box.width * gain), 1)
    top, left = round((rows - inside[0]) / 2 - 0.1), round((columns - inside[1]) / 2 - 0.1)
    cut = large[top : top + inside[0], left : left + inside[1]]
    return enlarged(cut, box.height, box.width)


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [
        (128, 96, 1),
        (256, 192, 1),
        (203, 271, 1),
        (310, 240, 2),
        (300, 100, 4),
        (17, 640, 4),
        (64, 48, 1),
    ],
)
@pytest.mark.parametrize("block", [1, 64])
def test_masks_are_those_of_the_whole_image_within_the_boxes(
    width: int, height: int, factor: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision.prototypes._BLOCK", block)
    _, box = letterbox_image(np.zeros((height, width, 3), np.uint8), (96, 128))
    rng = np.random.default_rng(3)
    prototypes = rng.standard_normal((8, 24, 32)).astype(np.float32)
    coefficients = rng.standard_normal((6, 8)).astype(np.float32)
    corner, size = rng.random((6, 2)) * 0.6, rng.random((6, 2)) * 0.8
    shares = np.concatenate([corner, corner + size], axis=1).clip(0, 1)
    shares[0] = [0, 0, 1, 1]
    xyxy = (shares * ([width, height] * 2)).astype(np.float32)
    masks = list(crop_masks(prototypes, coefficients, xyxy, box))
    for weights, corners, mask in zip(coefficients, xyxy, masks, strict=True):
        expected = whole_logits(np.tensordot(weights, prototypes, 1), box, factor)
        x1, y1, x2, y2 = np.ceil(corners).astype(int)
        assert (mask.left, mask.top) == (x1, y1)
        assert mask.pixels.shape == (y2 - y1, x2 - x1)
        clear = np.abs(expected[y1:y2, x1:x2]) > 1e-4  # not decided by rounding
        assert (mask.pixels == (expected[y1:y2, x1:x2] > 0))[clear].all()


def test_a_box_within_a_pixel_has_an_empty_mask() -> None:
    box = Letterbox(1, 1, 0, 0, 128, 96)
    xyxy = np.array([[10.2, 10.2, 10.8, 30]], dtype=np.float32)
    (mask,) = crop_masks(np.ones((1, 24, 32), np.float32), np.ones((1, 1), np.float32), xyxy, box)
    assert mask.pixels.shape == (19, 0)


def test_large_masks_exist_one_at_a_time() -> None:
    width, height, count = 2000, 1500, 6
    _, box = letterbox_image(np.zeros((height, width, 3), np.uint8), (640, 640))
    prototypes = np.random.default_rng(4).standard_normal((4, 160, 160)).astype(np.float32)
    coefficients = np.eye(4, dtype=np.float32)[np.arange(count) % 4]
    xyxy = np.tile(np.array([0, 0, width, height], dtype=np.float32), (count, 1))
    tracemalloc.start()
    try:
        total = sum(mask.pixels.size for mask in crop_masks(prototypes, coefficients, xyxy, box))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == count * width * height
    assert peak < 4 * width * height  # one mask while the next is made, not all six
