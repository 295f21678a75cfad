"""Masks of single objects: COCO's compressed run lengths, and polygons.

A full mask takes a byte for each pixel of the image: 300 objects in 50 megapixels are 15 GB.
Therefore a mask exists within the box of its object only, and becomes run lengths or polygons at
once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from servicekit.mask_formats import MaskFormat
from vision.errors import ModelError

_DIGITS = 7  # characters of 5 bits each; 35 bits hold any run length of an image
_FIRST = 48  # the character of the digit 0


@dataclass(frozen=True, slots=True)
class RleMask:
    """A mask of the whole image as COCO's compressed run lengths.

    ``{"size": [mask.height, mask.width], "counts": mask.counts}`` is COCO's own form of it.

    Attributes:
        height: of the upright image, in pixels.
        width: of the upright image, in pixels.
        counts: run lengths of background and object in turn, column by column, compressed.
    """

    height: int
    width: int
    counts: str


@dataclass(frozen=True, slots=True, eq=False)
class PolygonMask:
    """The outlines of an object; none if no pixel belongs to it.

    Attributes:
        rings: each float32 ``[P, 2]`` with P >= 3, the columns and rows of pixels on the outline,
            counted from 0, as OpenCV's ``fillPoly`` expects them. The outline runs through the
            outermost pixels of the object, which belong to it. The largest ring comes first.
    """

    rings: tuple[NDArray[np.float32], ...]


OnMask = Callable[[RleMask | PolygonMask], RleMask | PolygonMask]
"""Function that is called with each mask when it is made, and returns the one to keep."""


def keep_mask(mask: RleMask | PolygonMask) -> RleMask | PolygonMask:
    """Return the mask: the default `OnMask`."""
    return mask


def check_mask_format(mask_format: MaskFormat) -> None:
    """Check that this installation can return masks in a format.

    Raises:
        ModelError: ``MODEL_UNSUPPORTED``: polygons need OpenCV, which is not installed.
    """
    if mask_format == "polygon":
        _opencv()


def encode_rle(crop: NDArray[np.bool_], *, left: int, top: int, width: int, height: int) -> RleMask:
    """Encode a mask that lies within a part of an image.

    The format is that of COCO's ``maskApi.c``.

    Args:
        crop: ``[h, w]``, True where the object is.
        left: column of the image where the crop begins, at least 0.
        top: row of the image where the crop begins, at least 0.
        width: of the image in pixels; the crop lies inside.
        height: of the image in pixels; the crop lies inside.

    Raises:
        ValueError: the crop does not lie inside the image.

    Example:
        >>> import numpy as np
        >>> encode_rle(np.ones((1, 2), bool), left=1, top=0, width=4, height=2).counts
        '2113'
    """
    rows, columns = crop.shape
    if not (0 <= left <= width - columns and 0 <= top <= height - rows):
        raise ValueError(
            f"the crop must lie inside the image of {width} x {height} pixels, got {columns} x "
            f"{rows} at ({left}, {top})"
        )
    # A column of background after each column: every run begins and ends within one column.
    flat = np.zeros(1 + columns * (rows + 1), dtype=np.bool_)
    flat[1:].reshape(columns, rows + 1)[:, :rows] = crop.T
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    column, row = np.divmod(changes, rows + 1)
    edges = (left + column) * height + top + row
    # A run to the bottom of the image and one from the top of the next column are one run.
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
    edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    counts = np.diff(edges, prepend=0, append=width * height)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return RleMask(height, width, _compress(counts))


def decode_rle(mask: RleMask) -> NDArray[np.bool_]:
    """Return a mask ``[height, width]``, True where the object is.

    Raises:
        ValueError: the counts are not those of an image of this size.

    Example:
        >>> decode_rle(RleMask(height=2, width=4, counts="2113")).astype(int).tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    counts = _expand(mask.counts)
    if (counts < 0).any() or counts.sum() != mask.width * mask.height:
        raise ValueError(
            f"counts must be run lengths of {mask.width} x {mask.height} pixels, got a sum of "
            f"{counts.sum()}"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(mask.width, mask.height).T


def trace_polygons(
    crop: NDArray[np.bool_], *, left: int, top: int, tolerance: float = 1.0
) -> PolygonMask:
    """Trace the outlines of a mask that lies within a part of an image.

    Args:
        crop: ``[h, w]``, True where the object is.
        left: column of the image where the crop begins.
        top: row of the image where the crop begins.
        tolerance: greatest distance in pixels between the outline and the polygon, at least 0
            (Douglas and Peucker, 1973).

    Raises:
        ValueError: the tolerance is below 0 or not a number.
        ModelError: ``MODEL_UNSUPPORTED``: OpenCV is not installed.
    """
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance must be at least 0 pixels, got {tolerance}")
    cv2 = _opencv()
    if not crop.size:
        return PolygonMask(())
    levels = np.ascontiguousarray(crop).view(np.uint8)
    contours, _ = cv2.findContours(levels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest_first = sorted(contours, key=cv2.contourArea, reverse=True)
    offset = np.array([left, top], dtype=np.float32)
    return PolygonMask(tuple(_simplify(cv2, each, tolerance) + offset for each in largest_first))


def simplify_rings(
    rings: Sequence[NDArray[np.float32]], tolerance: float
) -> list[NDArray[np.float32]]:
    """Return rings with fewer points, without those that are left with fewer than three.

    Args:
        rings: each ``[P, 2]``; see `PolygonMask`.
        tolerance: greatest distance in pixels between a ring and the returned one.

    Raises:
        ModelError: ``MODEL_UNSUPPORTED``: OpenCV is not installed.
    """
    cv2 = _opencv()
    simpler = (cv2.approxPolyDP(ring, tolerance, closed=True)[:, 0] for ring in rings)
    return [ring for ring in simpler if len(ring) >= 3]


@cache
def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise ModelError(
            "MODEL_UNSUPPORTED",
            "masks as polygons need OpenCV, which is not installed: install "
            "opencv-python-headless, or choose the mask format rle",
        ) from error
    return cv2


def _simplify(cv2: ModuleType, contour: NDArray[np.int32], tolerance: float) -> NDArray[np.float32]:
    """Return a ring of at least three points within the tolerance of a contour."""
    for points in (cv2.approxPolyDP(contour, tolerance, closed=True), contour):
        if len(points) >= 3:
            return np.asarray(points.reshape(-1, 2), dtype=np.float32)
    # One pixel, or two that touch: a ring without an area.
    return np.asarray(contour[[0, -1, -1], 0], dtype=np.float32)


def _compress(counts: NDArray[np.int64]) -> str:
    """Write counts as text; from the fourth on, each as its difference to the last but one."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    digits = np.empty((len(counts), _DIGITS), dtype=np.uint8)
    used = np.zeros(digits.shape, dtype=np.bool_)
    more = np.ones(len(counts), dtype=np.bool_)
    for place in range(_DIGITS):
        low = rest & 31
        rest >>= 5
        used[:, place] = more
        more = more & (rest != np.where(low & 16, -1, 0))
        digits[:, place] = _FIRST + low + 32 * more
    return digits[used].tobytes().decode("ascii")


def _expand(text: str) -> NDArray[np.int64]:
    """Return the counts of a compressed text."""
    digits = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
    digits -= _FIRST
    if not len(digits) or (digits < 0).any() or (digits > 63).any() or digits[-1] & 32:
        raise ValueError("counts must be COCO's compressed run lengths")
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if (lengths > _DIGITS).any():
        raise ValueError("counts must be COCO's compressed run lengths, below 2^35")
    place = np.arange(len(digits)) - np.repeat(first, lengths)
    counts = np.add.reduceat((digits & 31) << (5 * place), first)
    counts -= np.where(digits[last] & 16, 1 << (5 * lengths), 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts
