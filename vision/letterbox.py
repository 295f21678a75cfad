"""Letterbox: scaling of an image into the model's input without distortion, and boxes back.

The result equals, bit for bit, what ultralytics feeds a model through OpenCV: the geometry of its
``LetterBox`` and ``scale_boxes`` (scale to fit, grey 114 on both sides, an odd row or column of
grey below or right), and the arithmetic of ``cv2.resize`` with ``INTER_LINEAR`` on 8-bit pixels
(half-pixel centres, no antialiasing, weights in 1/2048, truncated twice and rounded once; OpenCV's
``modules/imgproc/src/resize.cpp``). Quantised models amplify small differences: on YOLOv8n int8 the
ideal interpolation, which differs by less than one grey level, changes confidences by up to 0.04;
Pillow's ``BILINEAR`` antialiases and differs by up to 80 levels.

If OpenCV is installed, it does the resize, in a quarter of the time and without the interpreter
lock. Devices need not install it.
"""

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

_GREY = np.float32(114) / np.float32(255)
_ONE = 2048  # interpolation weights are multiples of 1/2048
_BLOCK = 32  # rows processed at a time, so that intermediate results stay in the cache


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Position and scale of one image in the model's input.

    Attributes:
        scale_x: input pixels per image pixel, horizontally; differs from ``scale_y`` only because
            the scaled image is rounded to whole pixels.
        scale_y: the same, vertically.
        pad_x: grey columns left of the image, in input pixels.
        pad_y: grey rows above the image, in input pixels.
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
    """

    scale_x: float
    scale_y: float
    pad_x: int
    pad_y: int
    width: int
    height: int

    def to_original(self, xyxy: NDArray[np.floating]) -> NDArray[np.float32]:
        """Convert boxes ``[N, 4]`` from input pixels to image pixels, clipped to the image."""
        gain = np.array([self.scale_x, self.scale_y] * 2)
        pad = np.array([self.pad_x, self.pad_y] * 2)
        return self.clip((xyxy - pad) / gain)

    def scale_back(self, cxcywh: NDArray[np.floating]) -> NDArray[np.float32]:
        """Convert centres and sizes ``[N, 4]`` from input pixels to image pixels, not clipped."""
        gain = np.array([self.scale_x, self.scale_y] * 2)
        pad = np.array([self.pad_x, self.pad_y, 0, 0])
        original: NDArray[np.float64] = (cxcywh - pad) / gain
        return original.astype(np.float32)

    def clip(self, xyxy: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the parts of boxes ``[N, 4]`` in image pixels that lie inside the image."""
        bound = np.array([self.width, self.height] * 2)
        clipped: NDArray[np.floating] = xyxy.clip(0, bound)
        return clipped.astype(np.float32)


def letterbox_image(
    image: NDArray[np.uint8], size: tuple[int, int], *, stretch: bool = False
) -> tuple[NDArray[np.float32], Letterbox]:
    """Scale an image into a model's input.

    Args:
        image: RGB ``[H, W, 3]``, H and W at least 1.
        size: height and width of the model's input, in pixels.
        stretch: True to fill the whole input, which distorts the image, as RT-DETR expects it.

    Returns:
        The input ``[1, 3, height, width]`` in 0..1, and the image's position in it.

    Raises:
        ValueError: the image is not ``[H, W, 3]`` uint8, or is empty.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    box = _place(image.shape[1], image.shape[0], size, stretch)
    columns, rows = round(box.scale_x * box.width), round(box.scale_y * box.height)
    batch = np.empty((1, 3, *size), dtype=np.float32)
    down, across = slice(box.pad_y, box.pad_y + rows), slice(box.pad_x, box.pad_x + columns)
    for border in (np.s_[: down.start], np.s_[down.stop :]):
        batch[0, :, border] = _GREY
    for border in (np.s_[: across.start], np.s_[across.stop :]):
        batch[0, :, down, border] = _GREY
    _fill(image, batch[0, :, down, across])
    return batch, box


def _place(width: int, height: int, size: tuple[int, int], stretch: bool) -> Letterbox:
    if stretch:
        return Letterbox(size[1] / width, size[0] / height, 0, 0, width, height)
    scale = min(size[0] / height, size[1] / width)
    columns, rows = (max(round(side * scale), 1) for side in (width, height))
    # As in ultralytics, the extra pixel of an odd padding goes right and down.
    pad_x = round((size[1] - columns) / 2 - 0.1)
    pad_y = round((size[0] - rows) / 2 - 0.1)
    return Letterbox(columns / width, rows / height, pad_x, pad_y, width, height)


@cache
def _opencv() -> ModuleType | None:
    """Return OpenCV's module, or None if it is not installed; the first call imports it."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def _fill(image: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Resize ``[H, W, 3]`` into the planes ``[3, rows, columns]`` of `out`, in 0..1."""
    _, rows, columns = out.shape
    cv2 = _opencv()
    if image.shape[:2] != (rows, columns):  # cameras are often configured to the model's size
        if cv2 is None:
            _resize(image, out)
            return
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    planes = image.transpose(2, 0, 1) if cv2 is None else cv2.split(image)
    for plane, level in zip(planes, out, strict=True):
        np.divide(plane, 255, out=level, dtype=np.float32)


def _resize(image: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Resize an image of another size into `out` without OpenCV; see `_fill`."""
    _, rows, columns = out.shape
    upper, lower, down = _taps(image.shape[0], rows)
    used, line_index = np.unique(np.concatenate([upper, lower]), return_inverse=True)
    narrow = _resize_lines(image, used, columns)
    first, second = line_index[:rows], line_index[rows:]
    for at in range(0, rows, _BLOCK):
        block = slice(at, at + _BLOCK)
        mixed = narrow[first[block]] * (_ONE - down[block, None])
        mixed >>= 16
        other = narrow[second[block]] * down[block, None]
        other >>= 16
        mixed += other
        mixed += 2
        mixed >>= 2
        planes = mixed.reshape(-1, 3, columns).transpose(1, 0, 2)
        np.divide(planes, 255, out=out[:, block], dtype=np.float32)


def _resize_lines(
    image: NDArray[np.uint8], used: NDArray[np.intp], columns: int
) -> NDArray[np.int16]:
    """Scale the lines in `used` to ``[N, 3 * columns]``, planes side by side, in 1/128 of a level.

    The sums need 20 bits, which single precision, the fastest type here, represents exactly.
    """
    height, width, _ = image.shape
    left, right, across = _taps(width, columns)
    plane = np.arange(3)[:, None]
    left_at, right_at = (left * 3 + plane).ravel(), (right * 3 + plane).ravel()
    right_weight = np.tile(across / 16, 3).astype(np.float32)
    left_weight = np.float32(_ONE / 16) - right_weight
    lines = image.reshape(height, width * 3)
    narrow = np.empty((len(used), 3 * columns), dtype=np.int16)
    for at in range(0, len(used), _BLOCK):
        block = lines[used[at : at + _BLOCK]].astype(np.float32)
        mixed = block.take(left_at, axis=1)
        mixed *= left_weight
        other = block.take(right_at, axis=1)
        other *= right_weight
        mixed += other
        narrow[at : at + _BLOCK] = mixed
    return narrow


def _taps(length: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """Return for each target pixel its two source neighbours and the weight of the second."""
    centre = ((np.arange(target) + 0.5) * (1 / (target / length)) - 0.5).astype(np.float32)
    first = np.floor(centre)
    weight = np.rint((centre - first) * np.float32(_ONE)).astype(np.int32)
    at = first.astype(np.intp)
    return at.clip(0, length - 1), (at + 1).clip(0, length - 1), weight
