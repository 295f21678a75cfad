"""Conversion of a Pillow image of any mode to upright RGB pixels.

Images that are read from bytes and images that a caller has opened with Pillow take this one way,
so that the same image has the same pixels.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision.errors import ImageError

logger = logging.getLogger(__name__)

# EXIF orientation (TIFF 6.0, tag 274); 1 is upright.
_ORIENTATION = 0x0112
_SWAPPING = frozenset({5, 6, 7, 8})
# Orientation -> view of the upright pixels with the rows and columns of the stored image.
_STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}
WHOLE_PIXELS = 2**22
"""Number of pixels up to which an upright image is converted at once."""
_STRIP_PIXELS = 2**18
_BITS_PER_SAMPLE = 258  # TIFF 6.0


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return the upright pixels; process large images in strips, which bounds the memory.

    Alpha is dropped and the colour of transparent pixels kept, as OpenCV does. Samples of 16 bits
    (modes `I;16...` and `I`) keep their upper 8 bits. Floats (mode `F`) are levels of 0 to 255,
    which are rounded down.

    Returns:
        RGB ``[H, W, 3]``, possibly read-only.

    Raises:
        ImageError: ``IMAGE_TYPE_UNSUPPORTED``: samples of mode `I` are not 0 to 65535, those of
            mode `F` not 0 to 255, or none of the latter is above 1.
        Exception: Pillow raised it for damaged data.
    """
    image.load()  # some readers turn the image upright now, and say so in its EXIF
    orientation = _orientation(image)
    to_rgb = _converter(image)
    width, height = image.size
    if width * height <= WHOLE_PIXELS and orientation == 1:
        return np.asarray(to_rgb(image))
    swapped = orientation in _SWAPPING
    pixels = np.empty((width, height, 3) if swapped else (height, width, 3), dtype=np.uint8)
    stored = _STORED[orientation](pixels)
    rows = max(_STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        stored[top:bottom] = np.asarray(to_rgb(image.crop((0, top, width, bottom))))
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # Pillow documents no list; a damaged tag does not make the image unusable
        logger.debug("unreadable EXIF: the image is treated as upright", exc_info=True)
        return 1
    return orientation if orientation in _STORED else 1


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the conversion of an image, or of a part of it, to mode RGB."""
    match image.mode:
        case "I;16" | "I;16L" | "I;16B" | "I;16N":
            shift = _bits_per_sample(image) - 8
            return lambda part: _grey(np.asarray(part) >> shift)
        case "I":
            return lambda part: _grey(_checked(part, 65_535) >> 8)
        case "F":
            _check_scale(image)
            return lambda part: _grey(_checked(part, 255))
        # Pillow has no direct conversion from La; that from RGBa would keep the product with alpha.
        case "La":
            return lambda part: part.convert("LA").convert("RGB")
        # Via RGBA, since Pillow warns about dropped transparency.
        case "P" | "PA" | "RGBa":
            return lambda part: part.convert("RGBA").convert("RGB")
        case "RGB":
            return lambda part: part
        case _:
            return lambda part: part.convert("RGB")


def _grey(levels: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _check_scale(image: Image.Image) -> None:
    """Raise ImageError for floats of 0 to 1, as OpenCV and PFM have them: they would be black."""
    darkest, brightest = image.getextrema()
    if isinstance(brightest, float) and 0 < brightest <= 1:
        raise ImageError(
            "IMAGE_TYPE_UNSUPPORTED",
            f"samples of a Pillow image of mode F must be 0 to 255, got {darkest:g} to"
            f" {brightest:g}: multiply them by 255, or convert it to 8 bits",
        )


def _checked(part: Image.Image, maximum: int) -> NDArray[Any]:
    """Return the samples of a part; their type alone does not say which level is white."""
    samples: NDArray[Any] = np.asarray(part)
    if not bool(((samples >= 0) & (samples <= maximum)).all()):  # false for NaN as well
        raise ImageError(
            "IMAGE_TYPE_UNSUPPORTED",
            f"samples of a Pillow image of mode {part.mode} must be 0 to {maximum},"
            f" got {samples.min()} to {samples.max()}: convert it to 8 bits",
        )
    return samples


def _bits_per_sample(image: Image.Image) -> int:
    """Return the bits in use: Pillow does not scale TIFFs of 12 bits up."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    return 12 if bits in (12, (12,)) else 16
