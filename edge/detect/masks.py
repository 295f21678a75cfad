"""Masks of other libraries as records, within the limits of the contract.

Each mask exists as pixels only within the rectangle around its object, one at a time: those of 300
objects in an image of 50 megapixels would be 15 GB.
"""

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from edge.geometry import Mask
from servicekit.mask_formats import MaskFormat

if TYPE_CHECKING:  # the edge core runs without numpy
    from numpy.typing import NDArray

    from vision.masks import PolygonMask, RleMask

Rectangle = tuple["NDArray[Any]", int, int]
"""The pixels `[h, w]` of a mask around an object, and the column and the row where they begin."""


def masks_of_results(
    bitmaps: "NDArray[Any]",
    size: tuple[int, int],
    mask_format: MaskFormat,
    tolerance: float,
    left_out: Counter[str],
) -> list[Mask | None]:
    """Return the masks of ultralytics' `Results`.

    Args:
        bitmaps: `[n, h, w]`, not 0 where the object is, in the size of the image or in that of the
            model's input, where the image is centred.
        size: height and width of the image in pixels.
        mask_format: polygon or rle.
        tolerance: largest distance between a polygon and its mask's outline in pixels.
        left_out: the counter of what does not fit into a record.
    """
    whole = bitmaps.shape[1:] == tuple(size)
    cut = (around(bitmap) if whole else _enlarged(bitmap, size) for bitmap in bitmaps)
    return [mask_of(rectangle, size, mask_format, tolerance, left_out) for rectangle in cut]


def mask_of(
    rectangle: Rectangle | None,
    size: tuple[int, int],
    mask_format: MaskFormat,
    tolerance: float,
    left_out: Counter[str],
) -> Mask | None:
    """Return the mask with these pixels, or None if there are none; see `masks_of_results`."""
    from vision.masks import encode_rle, trace_polygons

    if rectangle is None:
        return None
    pixels, left, top = rectangle
    if mask_format == "rle":
        height, width = size
        encoded = encode_rle(pixels, left=left, top=top, width=width, height=height)
        return record_of(encoded, tolerance, left_out)
    return record_of(
        trace_polygons(pixels, left=left, top=top, tolerance=tolerance), tolerance, left_out
    )


def record_of(
    mask: "RleMask | PolygonMask", tolerance: float, left_out: Counter[str]
) -> Mask | None:
    """Return a mask of `vision` as a record, or None if no pixel belongs to it.

    A mask beyond the limits of the contract is simplified, which counts as `mask_detail`: run
    lengths become polygons, and polygons lose points and their smallest parts.
    """
    from vision import RleMask, fit_mask

    fitted = fit_mask(mask, tolerance)
    if fitted is not mask:
        left_out["mask_detail"] += 1
    if isinstance(fitted, RleMask):
        return Mask(rle=fitted.counts, width=fitted.width, height=fitted.height)
    return Mask(polygons=fitted.rings) if fitted.rings else None


def around(bitmap: "NDArray[Any]") -> Rectangle | None:
    """Return the rectangle around a mask in the size of its image, or None if it is empty."""
    import numpy as np

    rows = np.flatnonzero(bitmap.any(axis=1))
    if not len(rows):
        return None
    lines = bitmap[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(lines.any(axis=0))
    left = int(columns[0])
    return lines[:, left : columns[-1] + 1] != 0, left, int(rows[0])


def _enlarged(bitmap: "NDArray[Any]", size: tuple[int, int]) -> Rectangle | None:
    """Return a mask of the model's input in pixels of the image, as ultralytics' `scale_masks`.

    It cuts the padding off and enlarges the rest, bilinear.
    """
    import cv2
    import numpy as np

    gain = min(large / side for large, side in zip(bitmap.shape, size, strict=True))
    rows, columns = (_inside(*sides, gain) for sides in zip(bitmap.shape, size, strict=True))
    found = around(bitmap[rows, columns])
    if found is None:
        return None
    pixels, left, top = found
    down = _Enlargement(top, pixels.shape[0], rows.stop - rows.start, size[0])
    across = _Enlargement(left, pixels.shape[1], columns.stop - columns.start, size[1])
    near = bitmap[rows, columns][down.near, across.near] != 0
    matrix = np.array([[across.gain, 0, across.shift], [0, down.gain, down.shift]])
    levels = cv2.warpAffine(
        near * np.uint8(255),
        matrix,
        (across.stop - across.start, down.stop - down.start),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return levels > 127, across.start, down.start


def _inside(large: int, side: int, gain: float) -> slice:
    """Return the part of a side of the model's input that is not padding."""
    length = max(round(side * gain), 1)
    start = max(round((large - length) / 2 - 0.1), 0)
    return slice(start, start + length)


class _Enlargement:
    """The enlargement of a mask on one axis, from the model's input to the image.

    Args:
        begin: the first pixel of the mask in the input without padding.
        length: number of pixels of the mask.
        inside: pixels of the input without padding.
        side: pixels of the image.
    """

    def __init__(self, begin: int, length: int, inside: int, side: int) -> None:
        self.gain = inside / side
        self.near = slice(max(begin - 1, 0), begin + length + 1)  # with a neighbour on each side
        self.start = int(begin / self.gain)
        self.stop = min(math.ceil((begin + length) / self.gain), side)
        self.shift = (self.start + 0.5) * self.gain - 0.5 - self.near.start
