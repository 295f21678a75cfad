"""Corners of rotated boxes, as arrays of numpy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the edge core runs without numpy
    from numpy.typing import NDArray

_ROUNDING = 1e-6  # radians


def corners_of(rotated: "NDArray[Any]") -> "NDArray[Any]":
    """Return the corners `[n, 4, 2]` of rotated boxes `[n, 5]`, in ultralytics' order.

    Args:
        rotated: center x and y, width, height, angle; see `RotatedBox`.
    """
    import numpy as np

    center, half = rotated[:, None, :2], rotated[:, None, 2:4] / 2
    cos, sin = np.cos(rotated[:, 4]), np.sin(rotated[:, 4])
    across = np.stack([cos, sin], axis=1)[:, None] * half[..., :1]
    down = np.stack([-sin, cos], axis=1)[:, None] * half[..., 1:]
    signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    return np.concatenate([center + a * across + d * down for a, d in signs], axis=1)


def boxes_with(corners: "NDArray[Any]") -> "NDArray[Any]":
    """Return the rotated boxes `[n, 5]`, angles in [0, pi/2), of their corners `[n, 4, 2]` in turn.

    An angle of 0 is kept in spite of the corners' rounding, which may be that of almost pi/2.
    """
    import numpy as np

    from vision.rotated import regularize

    corners = np.asarray(corners, np.float64).reshape(-1, 4, 2)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1]
    sides = [np.hypot(side[:, 0], side[:, 1]) for side in (first, second)]
    angle = np.arctan2(first[:, 1], first[:, 0]) + _ROUNDING
    rotated = regularize(np.column_stack([corners.mean(axis=1), *sides, angle]))
    rotated[:, 4] = (rotated[:, 4] - _ROUNDING).clip(0)
    return rotated
