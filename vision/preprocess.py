"""What a classifier is shown of an image: resized, cropped and normalised as it was trained.

Bit for bit what torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize`` make of a
Pillow image: the same resampling (Pillow's, which antialiases), the same rounding of sizes and
offsets, single precision. Only images that the resize would blow up are cut first.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Interpolation(StrEnum):
    """How pixels are resampled, always with antialiasing."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


_FILTERS = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}
_RESIZED_BYTES = 4 + 2 * 3  # per pixel: Pillow's, and two copies as bytes
_INPUT_BYTES = 2 * 3 * 4  # per pixel
_MOST_RESIZED = 2**24  # pixels of a resized image that is made as a whole


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a classifier's input is made.

    Attributes:
        resize: of the whole image, in pixels, at least 1: the shorter side, with the shape kept,
            or exactly (height, width); None for the shorter side of the crop.
        crop: height and width that are cut from the middle, in pixels; what the image lacks is
            black. None for the model's input size.
        interpolation: of the resize.
        mean: of red, green and blue in 0..1; is subtracted.
        std: of the same, above 0; is divided by.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = Interpolation.BILINEAR
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


def preprocess_image(
    image: NDArray[np.uint8], how: Preprocess, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Make a classifier's input of an image.

    Args:
        image: RGB ``[H, W, 3]``, H and W at least 1.
        how: what to do with it.
        size: height and width of the model's input, in pixels.

    Returns:
        The input ``[1, 3, height, width]``.

    Raises:
        ValueError: the image is not ``[H, W, 3]`` uint8, or is empty; the crop is not the input.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image must be uint8 [H, W, 3], is {image.dtype} {list(image.shape)}")
    crop = how.crop or size
    if crop != size:
        raise ValueError(f"crop must be the input's {list(size)}, is {list(crop)}")
    target = _target(image.shape, how.resize or min(crop))
    planes = _cut(image, target, crop, _FILTERS[how.interpolation]).transpose(2, 0, 1)
    batch = np.empty((1, *planes.shape), dtype=np.float32)
    np.divide(planes, 255, out=batch[0], dtype=np.float32)
    batch -= np.array(how.mean, dtype=np.float32)[:, None, None]
    batch /= np.array(how.std, dtype=np.float32)[:, None, None]
    return batch


def preprocess_bytes(width: int, height: int, how: Preprocess, size: tuple[int, int]) -> int:
    """Return the memory that `preprocess_image` takes beside an image of this size.

    A long and narrow image becomes larger before it is cropped.
    """
    rows, columns = _target((height, width), how.resize or min(how.crop or size))
    resized = min(rows * columns, _MOST_RESIZED)
    return _RESIZED_BYTES * resized + _INPUT_BYTES * size[0] * size[1]


def _target(shape: tuple[int, ...], resize: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width after the resize; the longer side is rounded down, as torchvision does."""
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
    """Resize to `target` and cut out the middle; torchvision pads before it rounds the middle."""
    short = [max(want - have, 0) for want, have in zip(crop, target, strict=True)]
    padded = [max(want, have) for want, have in zip(crop, target, strict=True)]
    at = [round((have - want) / 2.0) for have, want in zip(padded, crop, strict=True)]
    shown = [min(want, have) for want, have in zip(crop, target, strict=True)]
    middle = _resize(image, target, (at[0], at[1]), (shown[0], shown[1]), filter_)
    if not any(short):
        return middle
    return np.pad(middle, [*((each // 2, (each + 1) // 2) for each in short), (0, 0)])


def _resize(
    image: NDArray[np.uint8],
    target: tuple[int, int],
    at: tuple[int, int],
    shown: tuple[int, int],
    filter_: Image.Resampling,
) -> NDArray[np.uint8]:
    """The part `at`, of size `shown`, of the image resized to `target`; all as rows, columns."""
    rows, columns = (slice(first, first + size) for first, size in zip(at, shown, strict=True))
    if image.shape[:2] == target:
        return image[rows, columns]
    pillow, (height, width) = Image.fromarray(image), target
    if height * width <= _MOST_RESIZED:
        return np.asarray(pillow.resize((width, height), filter_))[rows, columns]
    # An image of one line and 16 384 columns would become one of 3 GB. Only what is shown of it is
    # made, which may round a level differently. Across first, since Pillow rounds in between.
    across, down = pillow.width / width, pillow.height / height
    box = (columns.start * across, 0.0, columns.stop * across, float(pillow.height))
    narrow = pillow.resize((shown[1], pillow.height), filter_, box=box)
    box = (0.0, rows.start * down, float(narrow.width), rows.stop * down)
    return np.asarray(narrow.resize((shown[1], shown[0]), filter_, box=box))
