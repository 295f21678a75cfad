"""Masks of a segmentation model, computed from its prototypes within the boxes of the objects.

The mask of an object is the sum of the prototypes, weighted with the object's coefficients, where
it is above 0 and inside the object's box (Bolya et al., YOLACT, 2019). The result equals that of
ultralytics with ``retina_masks=True``: it cuts the padding off the prototypes and enlarges them to
the size of the image. Where the padding does not end at a prototype's pixel, they are first
enlarged two or four times.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.errors import ModelError
from vision.letterbox import Letterbox

_REDUCTION = 4  # input pixels per pixel of a prototype in ultralytics' models
_BLOCK = 64  # columns of the image that are computed at a time


@dataclass(frozen=True, slots=True)
class MaskCrop:
    """The mask of one object within its box.

    Attributes:
        pixels: bool ``[h, w]``, True where the object is; h or w may be 0.
        left: column of the image where it begins.
        top: row of the image where it begins.
    """

    pixels: NDArray[np.bool_]
    left: int
    top: int


def crop_masks(
    prototypes: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    xyxy: NDArray[np.float32],
    box: Letterbox,
) -> Iterator[MaskCrop]:
    """Yield the mask of each object, one at a time.

    Args:
        prototypes: ``[C, h, w]``.
        coefficients: ``[N, C]``.
        xyxy: ``[N, 4]``, boxes in pixels of the image and inside it.
        box: size of the image.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``: NaN or infinity within the box of an object.
    """
    _, rows, columns = prototypes.shape
    factor = _enlargement(rows, columns, box)
    down = _Axis(rows, columns, box.height, box.width, factor)
    across = _Axis(columns, rows, box.width, box.height, factor)
    for weights, corners in zip(coefficients, np.ceil(xyxy).astype(np.int64), strict=True):
        left, top, right, bottom = (int(side) for side in corners)
        rows_taps, columns_taps = down.taps(top, bottom), across.taps(left, right)
        near = _used(rows_taps), _used(columns_taps)
        with np.errstate(invalid="ignore", over="ignore"):
            logits = np.tensordot(weights, prototypes[:, near[0], near[1]], axes=1)
        if not np.isfinite(logits).all():
            raise ModelError(
                "MODEL_OUTPUT_INVALID", "the model's output contains NaN or infinity in a mask"
            )
        pixels = _enlarge(logits, rows_taps[:, near[0]], columns_taps[:, near[1]])
        yield MaskCrop(pixels.T, left, top)


def _enlargement(rows: int, columns: int, box: Letterbox) -> int:
    """Return the smallest enlargement, 1, 2 or 4, that ends the padding at a whole pixel."""
    height, width = _REDUCTION * rows, _REDUCTION * columns
    gain = min(height / box.height, width / box.width)
    padding = (height - _scaled(box.height, gain)) | (width - _scaled(box.width, gain))
    return _REDUCTION // math.gcd(_REDUCTION, padding | padding // 2)


def _scaled(side: int, gain: float) -> int:
    return max(round(side * gain), 1)


class _Axis:
    """One axis of the way from prototypes to the image.

    Args:
        length: pixels of the prototypes on this axis.
        other: pixels of the prototypes on the other axis.
        side: pixels of the image on this axis.
        other_side: pixels of the image on the other axis.
        factor: of the first enlargement.
    """

    def __init__(self, length: int, other: int, side: int, other_side: int, factor: int) -> None:
        large = length * factor
        gain = min(large / side, other * factor / other_side)
        inside = _scaled(side, gain)
        begin = round((large - inside) / 2 - 0.1)
        if (large, other * factor) == (side, other_side):
            begin, inside = 0, large
        self._first = _interpolation(length, large, 0, large)[begin : begin + inside]
        self._inside, self._side = inside, side

    def taps(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the weights ``[stop - start, length]`` of a range of the image's pixels."""
        lower, upper, weight = _neighbours(self._inside, self._side, start, stop)
        mixed: NDArray[np.float32] = self._first[lower] * (1 - weight[:, None])
        mixed += self._first[upper] * weight[:, None]
        return mixed


def _neighbours(
    length: int, target: int, start: int, stop: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return the two source pixels of each target pixel, and the weight of the second."""
    at = ((np.arange(start, stop) + 0.5) * (length / target) - 0.5).clip(0)
    lower = np.minimum(at.astype(np.intp), length - 1)
    weight = (at - lower).astype(np.float32)
    return lower, np.minimum(lower + 1, length - 1), weight


def _interpolation(length: int, target: int, start: int, stop: int) -> NDArray[np.float32]:
    lower, upper, weight = _neighbours(length, target, start, stop)
    matrix = np.zeros((stop - start, length), dtype=np.float32)
    each = np.arange(stop - start)
    matrix[each, lower] += 1 - weight
    matrix[each, upper] += weight
    return matrix


def _enlarge(
    logits: NDArray[np.float32], down: NDArray[np.float32], across: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Return where the enlarged logits are above 0, ``[columns, rows]``.

    Column by column, as run lengths need them; in blocks, and from the prototype's pixels under
    each block only, which are few.
    """
    lines = logits.T @ down.T
    pixels = np.empty((len(across), len(down)), dtype=np.bool_)
    for at in range(0, len(across), _BLOCK):
        block = across[at : at + _BLOCK]
        near = _used(block)
        np.greater(block[:, near] @ lines[near], 0, out=pixels[at : at + _BLOCK])
    return pixels


def _used(weights: NDArray[np.float32]) -> slice:
    """Return the range of prototype pixels that have a weight in a range of the image's pixels."""
    used = np.flatnonzero(weights.any(axis=0))
    return slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
