"""The limits of one mask in the contract, and masks that are simplified until they keep them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from servicekit.contract_bounds import MAX_MASK_POINTS, MAX_POLYGONS, MAX_RLE_BYTES
from vision.masks import PolygonMask, RleMask, decode_rle, simplify_rings, trace_polygons

_Rings = Sequence[NDArray[np.float32]]


def fit_mask(mask: RleMask | PolygonMask, tolerance: float = 1.0) -> RleMask | PolygonMask:
    """Return a mask within the limits of the contract: the same object if it keeps them.

    Run lengths that are too long become polygons. Polygons lose their smallest parts, and then
    points.

    Args:
        mask: a mask of any size.
        tolerance: of polygons that are made, in pixels; see `trace_polygons`.

    Raises:
        ModelError: ``MODEL_UNSUPPORTED``: OpenCV is needed and not installed.

    Example:
        >>> mask = RleMask(height=2, width=4, counts="2113")
        >>> fit_mask(mask) is mask
        True
    """
    if isinstance(mask, RleMask):
        if len(mask.counts) <= MAX_RLE_BYTES:
            return mask
        mask = trace_polygons(decode_rle(mask), left=0, top=0, tolerance=tolerance)
    rings: _Rings = mask.rings
    if len(rings) <= MAX_POLYGONS and _points(rings) <= MAX_MASK_POINTS:
        return mask
    kept = rings = rings[:MAX_POLYGONS]  # the largest ones, as they are sorted
    while _points(kept) > MAX_MASK_POINTS:
        tolerance = max(2 * tolerance, 1.0)
        kept = simplify_rings(rings, tolerance) or [_corners(rings[0])]
    return PolygonMask(tuple(kept))


def _points(rings: _Rings) -> int:
    return sum(map(len, rings))


def _corners(ring: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rectangle around a ring."""
    (left, top), (right, bottom) = ring.min(axis=0), ring.max(axis=0)
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)
