"""Seeded images of brushed-metal plates with known defects: training data, and the demo's camera.

Only numpy and Pillow are used, so that the demo runs without torch or OpenCV.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.defects import PAINTERS, Patch

Box = tuple[int, int, int, int]

CLASS_NAMES = ("scratch", "pit", "stain")

# Probability of 0, 1, 2, 3 and 4 defects on a plate.
_COUNT_ODDS = (0.20, 0.25, 0.25, 0.18, 0.12)
FRAMES_PER_CAMERA = 1_000_000
_REFERENCE_SIZE = (320, 240)
_SMALLEST_SIDE = 120
_GAP = 4
_PLACING_ATTEMPTS = 30


@dataclass(frozen=True, slots=True)
class Plate:
    """One image with its ground truth.

    Attributes:
        image: uint8 ``[height, width, 3]``, RGB.
        boxes: float32 ``[N, 4]``, x_min, y_min, x_max, y_max in pixels: the edges of the defect, so
            the last pixel inside is x_max - 1. N is 0 for a clean plate.
        class_ids: int64 ``[N]``, indices into CLASS_NAMES.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Mark:
    """A painted defect and where it goes."""

    class_id: int
    patch: Patch
    left: int
    top: int

    @property
    def box(self) -> Box:
        rows, columns = self.patch.shape[:2]
        return (self.left, self.top, self.left + columns, self.top + rows)


def make_plate(seed: int, *, width: int = 320, height: int = 240) -> Plate:
    """Return the plate of this seed; the same arguments always give the same plate.

    Args:
        seed: any integer >= 0.
        width: in pixels, at least 120; defects grow with the plate.
        height: in pixels, at least 120.

    Raises:
        ValueError: an argument is out of its range.
    """
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if min(width, height) < _SMALLEST_SIDE:
        raise ValueError(
            f"width and height must be >= {_SMALLEST_SIDE} pixels, got {width} x {height}"
        )
    surface_rng, defect_rng = np.random.default_rng(seed).spawn(2)
    canvas = surface(surface_rng, width, height)
    marks = _place_marks(defect_rng, width, height)
    for mark in marks:
        left, top, right, bottom = mark.box
        canvas[top:bottom, left:right] *= mark.patch
    return Plate(
        image=to_uint8(canvas),
        boxes=np.array([mark.box for mark in marks], dtype=np.float32).reshape(-1, 4),
        class_ids=np.array([mark.class_id for mark in marks], dtype=np.int64),
    )


def camera(seed: int, *, width: int = 320, height: int = 240) -> Iterator[Plate]:
    """Yield plates without end: the frames of a camera over a production line.

    The first frame is the plate of seed (seed + 1) * FRAMES_PER_CAMERA. Two cameras share no plate
    before one has yielded that many, and no camera shows a seed below that: those are for training.

    Raises:
        ValueError: an argument is out of make_plate's range; raised with the first plate.
    """
    for frame in itertools.count((seed + 1) * FRAMES_PER_CAMERA):
        yield make_plate(frame, width=width, height=height)


def to_jpeg(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Encode an RGB image, uint8 ``[height, width, 3]``, as JPEG of this quality, 1 to 95."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def to_uint8(canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round a canvas of grey levels, nominally 0 to 255, to an image of uint8."""
    rounded = canvas + np.float32(0.5)
    return np.clip(rounded, 0, 255, out=rounded).astype(np.uint8)


def surface(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Return bare brushed metal, unevenly lit, with sensor noise.

    Returns:
        float32 ``[height, width, 3]`` in grey levels, nominally 0 to 255.
    """
    level = rng.uniform(110, 175) + _brushing(rng, width, height)
    level *= _light(rng, width, height)
    noise = rng.standard_normal((height, width), dtype=np.float32)
    noise *= rng.uniform(1.0, 3.0)
    level += noise
    canvas = np.empty((height, width, 3), dtype=np.float32)
    for channel, tint in enumerate(rng.uniform(0.96, 1.04, 3)):
        np.multiply(level, np.float32(tint), out=canvas[:, :, channel])
    return canvas


def _brushing(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Return fine parallel streaks, horizontal or vertical: noise stretched along one axis."""
    upright = bool(rng.random() < 0.3)
    rows, length = (width, height) if upright else (height, width)
    strength = rng.uniform(2.0, 6.0)
    streaks = np.zeros((rows, length), dtype=np.float32)
    for stretch, share in ((60, 0.7), (12, 0.5)):
        seeds = rng.standard_normal((rows, length // stretch + 2), dtype=np.float32)
        drawn = Image.fromarray(seeds).resize((length, rows), Image.Resampling.BILINEAR)
        streaks += np.float32(share * strength) * np.asarray(drawn)
    return streaks.T if upright else streaks


def _light(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Return relative brightness around 1: a gradient in one direction and one soft highlight."""
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope_x, slope_y = rng.uniform(-0.16, 0.16, 2).astype(np.float32)
    spot_x, spot_y = rng.uniform(-1, 1, 2).astype(np.float32)
    reach = np.float32(rng.uniform(0.5, 1.2))
    glow = np.float32(rng.uniform(0.0, 0.22))
    # A Gaussian is separable: two one-dimensional ones spare most calls of exp.
    spot = np.exp(-(((x - spot_x) / reach) ** 2)) * np.exp(-(((y - spot_y) / reach) ** 2))
    return np.asarray(1 + slope_x * x + slope_y * y + glow * spot, dtype=np.float32)


def _place_marks(rng: np.random.Generator, width: int, height: int) -> list[_Mark]:
    """Draw the number of defects, and a free place for each."""
    scale = min(width / _REFERENCE_SIZE[0], height / _REFERENCE_SIZE[1])
    marks: list[_Mark] = []
    for _ in range(int(rng.choice(len(_COUNT_ODDS), p=_COUNT_ODDS))):
        class_id = int(rng.integers(len(CLASS_NAMES)))
        patch = PAINTERS[class_id](rng, scale)
        place = _free_place(rng, patch, [mark.box for mark in marks], (width, height))
        if place is not None:
            marks.append(_Mark(class_id, patch, *place))
    return marks


def _free_place(
    rng: np.random.Generator, patch: Patch, taken: list[Box], size: tuple[int, int]
) -> tuple[int, int] | None:
    """Return left and top at which the patch touches no other; None if none was found."""
    rows, columns = patch.shape[:2]
    for _ in range(_PLACING_ATTEMPTS):
        left = int(rng.integers(size[0] - columns + 1))
        top = int(rng.integers(size[1] - rows + 1))
        box = (left, top, left + columns, top + rows)
        if not any(_touches(box, other) for other in taken):
            return left, top
    return None


def _touches(a: Box, b: Box) -> bool:
    """Return True if less than _GAP pixels lie between two boxes."""
    return a[0] < b[2] + _GAP and b[0] < a[2] + _GAP and a[1] < b[3] + _GAP and b[1] < a[3] + _GAP
