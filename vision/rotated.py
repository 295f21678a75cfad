"""Geometry of rotated boxes: centre x and y, width, height, and the clockwise angle in radians."""

import numpy as np
from numpy.typing import NDArray

_TINY = 1e-7  # ultralytics' epsilon


def regularize(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the same rectangles ``[N, 5]`` with angles in [0, pi / 2), as ultralytics does.

    Where a quarter turn has to be taken off, width and height change places.
    """
    angle = np.mod(boxes[:, 4].astype(np.float64), np.pi)
    turned = angle >= np.pi / 2
    angle = np.where(turned, angle - np.pi / 2, angle).astype(np.float32)
    # Rounded to single precision, an angle just below pi / 2 is above it: the same as 0, turned.
    end = angle >= np.float32(np.pi / 2)
    size = np.where((turned ^ end)[:, None], boxes[:, [3, 2]], boxes[:, 2:4])
    angle = np.where(end, np.float32(0), angle)
    return np.concatenate([boxes[:, :2], size, angle[:, None]], axis=1)


def hull(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the smallest axis-aligned boxes ``[N, 4]``, as corners, around boxes ``[N, 5]``."""
    cos, sin = np.abs(np.cos(boxes[:, 4:])), np.abs(np.sin(boxes[:, 4:]))
    width, height = boxes[:, 2:3], boxes[:, 3:4]
    half = np.concatenate([width * cos + height * sin, width * sin + height * cos], axis=1) / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def probabilistic_iou(
    first: NDArray[np.float32], other: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the overlap of each pair of boxes ``[N, 5]`` and ``[M, 5]`` as ``[N, M]``.

    Boxes count as normal distributions; the overlap is 1 minus their Hellinger distance, from 0 to
    1 (Llerena et al., "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union", 2021),
    with the epsilon of ultralytics' ``batch_probiou``.
    """
    a1, b1, c1 = (each[:, None] for each in _covariance(first))
    a2, b2, c2 = _covariance(other)
    across, down = first[:, 0, None] - other[:, 0], first[:, 1, None] - other[:, 1]
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    determinant = a * b - c * c
    safe = determinant + _TINY
    distance = (a * down * down + b * across * across) / safe / 4
    distance -= c * across * down / safe / 2
    product = (a1 * b1 - c1 * c1).clip(0) * (a2 * b2 - c2 * c2).clip(0)
    distance += np.log(determinant / (4 * np.sqrt(product) + _TINY) + _TINY) / 2
    hellinger: NDArray[np.float32] = np.sqrt(1 - np.exp(-distance.clip(_TINY, 100)) + _TINY)
    return 1 - hellinger


def _covariance(
    boxes: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the elements a, b and c of the covariance matrices ``[[a, c], [c, b]]``.

    In double precision: in float32 the determinants of long, thin boxes cancel out.
    """
    wide, high, angle = boxes[:, 2:].astype(np.float64).T
    wide, high = wide * wide / 12, high * high / 12
    cos, sin = np.cos(angle), np.sin(angle)
    return wide * cos**2 + high * sin**2, wide * sin**2 + high * cos**2, (wide - high) * cos * sin
