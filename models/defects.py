"""Functions that paint the three defects as patches of relative brightness."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# float32 [height, width, 3], cropped to the visible part; 1 leaves the metal as it is.
Patch = NDArray[np.float32]

# A pixel is part of the defect from this change of brightness on: six grey levels of 150.
VISIBLE = 0.04

_OVERSAMPLING = 3
_SEGMENTS = 24


def scratch(rng: np.random.Generator, scale: float) -> Patch:
    """Paint a thin, slightly bowed line: a bright burr beside a dark groove, or the groove alone.

    It runs 14 to 76 degrees off the brushing: along it the two could not be told apart.
    """
    length = rng.uniform(38, 125) * scale
    width = rng.uniform(1.2, 2.6) * max(scale, 0.5)
    steep = np.deg2rad(rng.uniform(14, 76)) * rng.choice((-1, 1))
    points = _bowed_line(length, steep, bow=rng.uniform(-0.12, 0.12) * length)
    stroke = _stroke(rng, points, width)
    groove = np.roll(stroke, 1, axis=0)
    if rng.random() < 0.65:
        factor = 1 + rng.uniform(0.28, 0.6) * stroke - rng.uniform(0.1, 0.3) * groove
    else:
        factor = 1 - rng.uniform(0.3, 0.6) * stroke
    return _crop(np.repeat(factor[:, :, None], 3, axis=2))


def pit(rng: np.random.Generator, scale: float) -> Patch:
    """Paint a small dark hole, not quite round, whose rim shines on the side of the light."""
    radius = rng.uniform(3.5, 9.0) * scale
    rho, theta = _polar_grid(radius * 1.7, stretch=1.0, turn=0.0)
    edge = rho / (radius * _wobble(rng, theta, amount=0.12))
    hole = _ramp(1.15 - edge, 0.35)
    rim = np.exp(-(((edge - 1.15) / 0.18) ** 2))
    lit = 0.5 + 0.5 * np.cos(theta - rng.uniform(0, 2 * np.pi))
    factor = 1 - rng.uniform(0.45, 0.75) * hole + rng.uniform(0.15, 0.5) * rim * lit
    return _crop(np.repeat(factor[:, :, None], 3, axis=2))


def stain(rng: np.random.Generator, scale: float) -> Patch:
    """Paint a broad, faint, brownish or bluish blot of uneven outline, darker along its edge."""
    radius = rng.uniform(14, 36) * scale
    stretch = rng.uniform(0.6, 1.0)
    rho, theta = _polar_grid(radius * 1.5, stretch, turn=rng.uniform(0, np.pi))
    edge = rho / (radius * _wobble(rng, theta, amount=0.16))
    body = _ramp(1.05 - edge, 0.15)
    ring = np.exp(-(((edge - 0.93) / 0.08) ** 2)) * body
    depth = rng.uniform(0.12, 0.32) * body + rng.uniform(0.0, 0.15) * ring
    tint = np.array((0.8, 1.0, 1.25) if rng.random() < 0.7 else (1.2, 1.0, 0.85))
    return _crop(1 - depth[:, :, None] * tint)


PAINTERS: tuple[Callable[[np.random.Generator, float], Patch], ...] = (scratch, pit, stain)


def _bowed_line(length: float, angle: float, bow: float) -> NDArray[np.float64]:
    """Return points ``[_SEGMENTS + 1, 2]`` of a parabola; lengths in pixels, angle in radians."""
    along = np.linspace(-0.5, 0.5, _SEGMENTS + 1)
    across = bow * (1 - 4 * along**2)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack(
        (length * along * cos - across * sin, length * along * sin + across * cos), axis=1
    )


def _stroke(
    rng: np.random.Generator, points: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """Draw a smooth line of varying pressure; return its cover in 0..1, ``[height, width]``."""
    margin = width + 2
    corner = points.min(axis=0) - margin
    columns, rows = np.ceil(points.max(axis=0) + margin - corner).astype(int)
    fine = Image.new("L", (int(columns) * _OVERSAMPLING, int(rows) * _OVERSAMPLING))
    draw = ImageDraw.Draw(fine)
    path = [(float(x), float(y)) for x, y in (points - corner) * _OVERSAMPLING]
    pressure = np.interp(np.linspace(0, 3, _SEGMENTS), range(4), rng.uniform(0.65, 1.0, 4))
    for (start, end), force in zip(pairwise(path), pressure, strict=True):
        draw.line((start, end), fill=int(255 * force), width=round(width * _OVERSAMPLING))
    return np.asarray(fine.reduce(_OVERSAMPLING), dtype=np.float64) / 255


def _polar_grid(
    reach: float, stretch: float, turn: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return radius (pixels) and angle (radians) over a square grid; stretch squeezes one axis."""
    line = np.arange(-np.ceil(reach), np.ceil(reach) + 1)
    u = np.cos(turn) * line[None, :] + np.sin(turn) * line[:, None]
    v = (np.cos(turn) * line[:, None] - np.sin(turn) * line[None, :]) / stretch
    return np.hypot(u, v), np.arctan2(v, u)


def _wobble(
    rng: np.random.Generator, theta: NDArray[np.float64], amount: float
) -> NDArray[np.float64]:
    """Return the relative radius of an uneven outline: three waves around the circle."""
    radius = np.ones_like(theta)
    for waves in (2, 3, 4):
        height, phase = rng.uniform(0, amount) / (waves - 1), rng.uniform(0, 2 * np.pi)
        radius += height * np.cos(waves * theta + phase)
    return radius


def _ramp(value: NDArray[np.float64], over: float) -> NDArray[np.float64]:
    """Rise from 0 to 1 while value goes from 0 to over."""
    return np.clip(value / over, 0, 1)


def _crop(factor: NDArray[np.float64]) -> Patch:
    """Crop a patch to the rows and columns in which the defect is visible."""
    visible = np.abs(factor - 1).max(axis=2) >= VISIBLE
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    return factor[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
