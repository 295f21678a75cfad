"""Images for the trial of a model: they make a network answer, without a photograph at hand. Pure.

A grey or a black image leaves most scores at 0, so that a network passes whose answers are nonsense
as soon as it finds something.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

TRIALS = 6
"""Number of images of a trial."""
_BLOCKS = (1, 4, 16, 64)  # sides of the squares of one colour, in pixels
_SEED = 8


def trial_images(height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the `TRIALS` images of a trial, always the same ones.

    They are black, white, and random noise in squares of several sizes: fine noise resembles
    textures, coarse noise has edges and areas.

    Args:
        height: of each image in pixels, at least 1.
        width: of each image in pixels, at least 1.

    Yields:
        RGB ``[height, width, 3]``.
    """
    random = np.random.default_rng(_SEED)
    for level in (0, 255):
        yield np.full((height, width, 3), level, dtype=np.uint8)
    for side in _BLOCKS:
        squares = (-(-height // side), -(-width // side), 3)
        noise = random.integers(0, 256, squares, dtype=np.uint8)
        yield np.ascontiguousarray(noise.repeat(side, 0).repeat(side, 1)[:height, :width])
