"""Results of an answer, drawn on copies of the images. Imports Pillow when it draws."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cloud.types import ImageAnswer
from edge.detect.images import pixels
from edge.detect.limits import DEVICE_LIMITS, DeviceImageLimits
from edge.records import Detection, Mask, RotatedBox

if TYPE_CHECKING:
    import PIL.Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

Colour = tuple[int, int, int]
_GOLDEN_RATIO = 0.618033988749895
_WRITABLE = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_MARGIN = 2  # pixels around a label's text
_OPACITY = 100  # of a mask, 0 to 255
_VISIBLE = 0.25  # least confidence of a keypoint that is drawn, as in ultralytics


class Copies:
    """A folder of images with boxes, rotated boxes, masks, keypoints and labels on them.

    A copy has the name of its original. It gets a number where an original or another copy of this
    run has that name. Originals are never written to.

    Args:
        folder: created if it does not exist.
        originals: every image of the run.
        limits: limits on the images that are read.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        originals: Sequence[Path],
        limits: DeviceImageLimits = DEVICE_LIMITS,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._originals = originals
        self._limits = limits
        self._written: set[Path] = set()

    def save(self, original: Path, answer: ImageAnswer) -> Path:
        """Write one copy, upright as the boxes are, and return its path.

        Raises:
            SightlineError: INVALID_ARGUMENT: the image cannot be read.
            OSError: the copy cannot be written.
        """
        import PIL.Image

        image = PIL.Image.fromarray(pixels(original, limits=self._limits))
        draw(image, answer)
        path = self._free_name(original)
        image.save(path, quality=95, subsampling=0)
        self._written.add(path)
        return path

    def _free_name(self, original: Path) -> Path:
        suffix = original.suffix if original.suffix.lower() in _WRITABLE else ".png"
        path, number = self._folder / f"{original.stem}{suffix}", 1
        while path in self._written or self._is_original(path):
            number += 1
            path = self._folder / f"{original.stem}-{number}{suffix}"
        return path

    def _is_original(self, path: Path) -> bool:
        return path.exists() and any(
            original.exists() and path.samefile(original) for original in self._originals
        )


def colour_of(class_id: int) -> Colour:
    """Return the colour of a class: the same in every image, and unlike its neighbours'."""
    hue = class_id * _GOLDEN_RATIO % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(image: "PIL.Image.Image", answer: ImageAnswer) -> None:
    """Draw the objects of a detection, or the classes of a classification, onto an image.

    A rotated box takes the place of its box. A mask is a transparent area, and a keypoint a dot
    unless the model takes it for hidden.
    """
    from PIL import ImageDraw, ImageFont

    for detection in reversed(answer.detections):
        if detection.mask is not None:
            _fill(image, detection.mask, colour_of(detection.class_id))
    canvas = ImageDraw.Draw(image)
    shorter = min(image.size)
    font = ImageFont.load_default(max(10, shorter // 40))
    width = max(2, shorter // 250)
    for detection in reversed(answer.detections):  # the most confident on top
        _outline(canvas, detection, width)
    for detection in reversed(answer.detections):
        if detection.box is not None:
            text = (
                f"{label_of(detection.class_id, detection.class_name)} {detection.confidence:.2f}"
            )
            at = (detection.box.x_min, detection.box.y_min)
            _write(canvas, at, text, colour_of(detection.class_id), font, image.size, above=True)
    top = 0.0
    for score in answer.classes:
        text = f"{label_of(score.class_id, score.class_name)} {score.probability:.2f}"
        top = _write(
            canvas, (0, top), text, colour_of(score.class_id), font, image.size, above=False
        )


def _outline(canvas: "ImageDraw", detection: Detection, width: int) -> None:
    """Draw the box of an object, rotated if it is, and its keypoints."""
    colour, box, rotated = colour_of(detection.class_id), detection.box, detection.rotated_box
    if rotated is not None:
        corners = _corners(rotated)
        canvas.line([*corners, *corners[:2]], fill=colour, width=width, joint="curve")
    elif box is not None:
        canvas.rectangle((box.x_min, box.y_min, box.x_max, box.y_max), outline=colour, width=width)
    for point in detection.keypoints:
        if point.confidence is None or point.confidence >= _VISIBLE:
            canvas.circle((point.x, point.y), 1.5 * width, fill=colour, outline=(255, 255, 255))


def _corners(box: RotatedBox) -> list[tuple[float, float]]:
    cos, sin = math.cos(box.angle), math.sin(box.angle)
    return [
        (
            box.center_x + (across * box.width * cos - down * box.height * sin) / 2,
            box.center_y + (across * box.width * sin + down * box.height * cos) / 2,
        )
        for across, down in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]


def _fill(image: "PIL.Image.Image", mask: Mask, colour: Colour) -> None:
    """Draw the pixels of an object in its colour, transparent."""
    import PIL.Image
    from PIL import ImageDraw

    area = PIL.Image.new("L", image.size)
    if mask.rle:
        from vision import RleMask, decode_rle

        pixels = decode_rle(RleMask(mask.height, mask.width, mask.rle))
        area.paste(PIL.Image.fromarray(pixels.astype("u1") * _OPACITY))
    canvas = ImageDraw.Draw(area)
    for polygon in mask.polygons:
        canvas.polygon(list(polygon), fill=_OPACITY)
    image.paste(colour, mask=area)


def label_of(class_id: int, class_name: str) -> str:
    """Return the name of a class; its number where the model has no labels."""
    return class_name or f"class {class_id}"


def _write(
    canvas: "ImageDraw",
    at: tuple[float, float],
    text: str,
    colour: Colour,
    font: "FreeTypeFont | ImageFont",
    size: tuple[int, int],
    *,
    above: bool,
) -> float:
    """Write a label on the colour of its class, inside an image of this size.

    Returns:
        The lower edge of the label, pixels.
    """
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN
    right_most, lowest = size[0] - width, size[1] - height
    x = max(0.0, min(at[0], right_most))
    y = max(0.0, min(at[1] - (height if above else 0.0), lowest))
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    ink = (0, 0, 0) if _is_light(colour) else (255, 255, 255)
    canvas.text((x + _MARGIN - left, y + _MARGIN - top), text, fill=ink, font=font)
    return y + height


def _is_light(colour: Colour) -> bool:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140  # ITU-R BT.601 luma
