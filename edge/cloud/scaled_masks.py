"""Masks of a downscaled image in pixels of its original. Pure; imports numpy and Pillow late."""

import math
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any

from edge.detect.masks import record_of
from edge.geometry import Mask
from servicekit.mask_formats import POLYGON_TOLERANCE

if TYPE_CHECKING:  # the edge core runs without numpy
    from numpy.typing import NDArray

_SHARPEST = 0.5  # least 1 + cosine between the normals of a corner; sharper ones are cut off


def enlarged_mask(mask: Mask, size: tuple[int, int], gain: tuple[float, float]) -> Mask | None:
    """Return a mask in pixels of the original, in the same form.

    The edge of run lengths is interpolated, as the service does for a full image. If they are
    longer than the contract allows, they become polygons.

    Args:
        mask: the mask of the downscaled image.
        size: width and height of the original in pixels.
        gain: original pixels per pixel of the mask in x and y, > 1.

    Returns:
        The mask; None if it had to become polygons and OpenCV is not installed.

    Raises:
        ValueError: its run lengths are not those of an image of its size, or it has another size
            than the downscaled image.
    """
    if mask.rle:
        return _enlarged_run_lengths(mask, size, gain)
    return Mask(polygons=[_enlarged_ring(polygon, size, gain) for polygon in mask.polygons])


def _enlarged_run_lengths(
    mask: Mask, size: tuple[int, int], gain: tuple[float, float]
) -> Mask | None:
    import numpy as np
    import PIL.Image

    from vision import ModelError, RleMask, decode_rle, encode_rle

    expected = round(size[0] / gain[0]), round(size[1] / gain[1])
    if (mask.width, mask.height) != expected:
        raise ValueError(
            f"mask must be of {expected[0]} x {expected[1]} pixels (got {mask.width} x"
            f" {mask.height})"
        )
    small = decode_rle(RleMask(mask.height, mask.width, mask.rle))
    left, right = _range(small.max(axis=0), size[0], gain[0])
    top, bottom = _range(small.max(axis=1), size[1], gain[1])
    crop = np.zeros((bottom - top, right - left), np.bool_)
    if crop.size:
        part = (
            left / gain[0],
            top / gain[1],
            min(right / gain[0], mask.width),
            min(bottom / gain[1], mask.height),
        )
        levels = PIL.Image.fromarray(small.astype(np.uint8) * 255).resize(
            (right - left, bottom - top), PIL.Image.Resampling.BILINEAR, box=part
        )
        crop = np.asarray(levels) > 127
    whole = encode_rle(crop, left=left, top=top, width=size[0], height=size[1])
    try:
        return record_of(whole, POLYGON_TOLERANCE, Counter())
    except ModelError:
        return None


def _range(used: "NDArray[Any]", side: int, gain: float) -> tuple[int, int]:
    """Return the range of the original's pixels that the used ones of an axis cover."""
    import numpy as np

    at = np.flatnonzero(used)
    if not len(at):
        return 0, 0
    return int(at[0] * gain), min(math.ceil((at[-1] + 1) * gain), side)


def _enlarged_ring(
    points: "array[float]", size: tuple[int, int], gain: tuple[float, float]
) -> "array[float]":
    """Return an outline in pixels of the original.

    An outline runs through the middle of the outermost pixels. It is moved to their outer edge,
    where it can be scaled, and then by half a pixel of the original back inside.
    """
    import numpy as np

    ring = np.frombuffer(points, np.float32).reshape(-1, 2).astype(np.float64)
    out = _outwards(ring)
    if out is None:  # one pixel, or a line of them: the rectangle around it
        low, high = ring.min(axis=0), ring.max(axis=0)
        out = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        ring = np.where(out < 0, low, high)
    large = (ring + 0.5 + out) * gain - 0.5 - out
    return array("f", large.clip(0, np.array(size) - 1).ravel().tolist())


def _outwards(ring: "NDArray[Any]") -> "NDArray[Any] | None":
    """Return how far each corner of a ring has to move for its sides to move by half a pixel.

    None if the ring has no area.
    """
    import numpy as np

    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    area = float(
        (ring[:, 0] * np.roll(ring[:, 1], -1) - ring[:, 1] * np.roll(ring[:, 0], -1)).sum()
    )
    if abs(area) < 1e-6:
        return None
    normals = []
    for side in (before, after):
        length = np.maximum(np.hypot(side[:, 0], side[:, 1]), 1e-9)
        normals.append(np.stack([side[:, 1], -side[:, 0]], axis=1) / length[:, None])
    cosine = (normals[0] * normals[1]).sum(axis=1)
    middle = np.sign(area) * (normals[0] + normals[1]) / 2
    moved: NDArray[Any] = middle / np.maximum(1 + cosine, _SHARPEST)[:, None]
    return moved
