"""Preprocessing for classifiers: resize, crop and normalise an image as in training.

The result equals, bit for bit, that of torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and
``Normalize`` for a Pillow image: the same resampling (Pillow's, which antialiases), the same
rounding of sizes and offsets, single precision. The exception are images that the resize would
enlarge beyond 2^24 pixels: these are cropped first.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Interpolation(StrEnum):
    """The resampling filter; both filters antialias."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


_FILTERS = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}
_RESIZED_BYTES = 4 + 2 * 3  # per pixel: Pillow's, and two copies as bytes
_INPUT_BYTES = 2 * 3 * 4  # per pixel
_MAX_RESIZED = 2**24  # pixels; larger images are cropped before they are resized


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Parameters of a classifier's preprocessing.

    Attributes:
        resize: target of the whole image in pixels, at least 1: length of the shorter side with the
            aspect ratio kept, or exactly (height, width); None for the shorter side of the crop.
        crop: height and width of the centre crop in pixels; a smaller image is padded with black.
            None for the model's input size.
        interpolation: filter of the resize.
        mean: mean of red, green and blue in 0..1, which is subtracted.
        std: standard deviation of the same, above 0, by which they are divided.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = Interpolation.BILINEAR
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


def preprocess_image(
    image: NDArray[np.uint8], preprocess: Preprocess, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Convert an image to a classifier's input.

    Args:
        image: RGB ``[H, W, 3]``, H and W at least 1.
        preprocess: the parameters.
        size: height and width of the model's input, in pixels.

    Returns:
        The input ``[1, 3, height, width]``.

    Raises:
        ValueError: the image is not ``[H, W, 3]`` uint8 or is empty; the crop is not the input.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    crop = preprocess.crop or size
    if crop != size:
        raise ValueError(f"crop must be the input's size {list(size)}, got {list(crop)}")
    target = _target(image.shape, preprocess.resize or min(crop))
    planes = _cut(image, target, crop, _FILTERS[preprocess.interpolation]).transpose(2, 0, 1)
    batch = np.empty((1, *planes.shape), dtype=np.float32)
    np.divide(planes, 255, out=batch[0], dtype=np.float32)
    batch -= np.array(preprocess.mean, dtype=np.float32)[:, None, None]
    batch /= np.array(preprocess.std, dtype=np.float32)[:, None, None]
    return batch


def preprocess_bytes(width: int, height: int, preprocess: Preprocess, size: tuple[int, int]) -> int:
    """Return the bytes that `preprocess_image` allocates in addition to an image of this size.

    The resize enlarges a long and narrow image before it is cropped.
    """
    rows, columns = _target((height, width), preprocess.resize or min(preprocess.crop or size))
    resized = min(rows * columns, _MAX_RESIZED)
    return _RESIZED_BYTES * resized + _INPUT_BYTES * size[0] * size[1]


def _target(shape: tuple[int, ...], resize: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width after the resize; like torchvision, round the longer side down."""
    if not isinstance(resize, int):
        return resize
    height, width = shape[:2]
    if width <= height:
        return max(int(resize * height / width), 1), resize
    return resize, max(int(resize * width / height), 1)


def _cut(
    image: NDArray[np.uint8],
    target: tuple[int, int],
    crop: tuple[int, int],
    filter_: Image.Resampling,
) -> NDArray[np.uint8]:
    """Resize to `target` and crop the centre; like torchvision, pad before rounding the offset."""
    missing = [max(want - have, 0) for want, have in zip(crop, target, strict=True)]
    padded = [max(want, have) for want, have in zip(crop, target, strict=True)]
    at = [round((have - want) / 2.0) for have, want in zip(padded, crop, strict=True)]
    shown = [min(want, have) for want, have in zip(crop, target, strict=True)]
    middle = _resize(image, target, (at[0], at[1]), (shown[0], shown[1]), filter_)
    if not any(missing):
        return middle
    return np.pad(middle, [*((count // 2, (count + 1) // 2) for count in missing), (0, 0)])


def _resize(
    image: NDArray[np.uint8],
    target: tuple[int, int],
    at: tuple[int, int],
    shown: tuple[int, int],
    filter_: Image.Resampling,
) -> NDArray[np.uint8]:
    """Return the part at `at`, of size `shown`, of the resized image; all as (rows, columns)."""
    rows, columns = (slice(first, first + size) for first, size in zip(at, shown, strict=True))
    if image.shape[:2] == target:
        return image[rows, columns]
    pillow, (height, width) = Image.fromarray(image), target
    if height * width <= _MAX_RESIZED:
        return np.asarray(pillow.resize((width, height), filter_))[rows, columns]
    # An image of one line and 16 384 columns would be enlarged to 3 GB. Only the visible part is
    # computed, which may round differently by one level. The horizontal pass comes first, since
    # Pillow rounds between the passes.
    across, down = pillow.width / width, pillow.height / height
    box = (columns.start * across, 0.0, columns.stop * across, float(pillow.height))
    narrow = pillow.resize((shown[1], pillow.height), filter_, box=box)
    box = (0.0, rows.start * down, float(narrow.width), rows.stop * down)
    return np.asarray(narrow.resize((shown[1], shown[0]), filter_, box=box))
