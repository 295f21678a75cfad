"""Downscaling of images to the input size of the cloud's model before they are sent."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge.cloud.scaled_masks import enlarged_mask
from edge.cloud.types import ImageAnswer, ModelHint, ModelInfo, ModelTask
from edge.detect.base import Image
from edge.detect.images import pixels, size_of
from edge.detect.limits import DEVICE_LIMITS, DeviceImageLimits
from edge.records import Box, Detection, RotatedBox
from servicekit.errors import SightlineError
from servicekit.media_kinds import MAX_SERVICE_BYTES, MAX_SERVICE_PIXELS, MAX_SERVICE_SIDE

_FITTED = (ModelTask.DETECT, ModelTask.SEGMENT, ModelTask.POSE, ModelTask.OBB)
QUALITY = 95
"""JPEG quality of downscaled images."""
LARGEST = (4096, 4096)
"""Width and height that images fit which the service would refuse in full size, while the input
size of its model is not known."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale of a downscaled image.

    Attributes:
        width: width of the upright original in pixels.
        height: height of the upright original in pixels.
        across: original pixels per sent pixel in x, > 1.
        down: original pixels per sent pixel in y; it differs from `across` by rounding only.
    """

    width: int
    height: int
    across: float
    down: float

    def restored(self, answer: ImageAnswer) -> ImageAnswer:
        """Return the answer with all its positions and sizes in pixels of the original.

        Raises:
            ValueError: the run lengths of a mask are invalid.
        """
        if answer.error is not None:
            return answer
        return replace(
            answer,
            image_width=self.width,
            image_height=self.height,
            detections=tuple(map(self._restored, answer.detections)),
        )

    def _restored(self, detection: Detection) -> Detection:
        box, rotated, mask = detection.box, detection.rotated_box, detection.mask
        size, gain = (self.width, self.height), (self.across, self.down)
        return replace(
            detection,
            box=None if box is None else self._box(box),
            rotated_box=None if rotated is None else self._rotated_box(rotated),
            keypoints=tuple(
                replace(point, x=point.x * self.across, y=point.y * self.down)
                for point in detection.keypoints
            ),
            mask=None if mask is None else enlarged_mask(mask, size, gain),
        )

    def _box(self, box: Box) -> Box:
        return Box(
            min(box.x_min * self.across, float(self.width)),
            min(box.y_min * self.down, float(self.height)),
            min(box.x_max * self.across, float(self.width)),
            min(box.y_max * self.down, float(self.height)),
        )

    def _rotated_box(self, box: RotatedBox) -> RotatedBox:
        """Return the box with its angle, as the service does for an image of the full size.

        `across` and `down` differ by rounding only.
        """
        return replace(
            box,
            center_x=box.center_x * self.across,
            center_y=box.center_y * self.down,
            width=box.width * self.across,
            height=box.height * self.down,
        )


def is_too_large(image: Image, field: str, limits: DeviceImageLimits = DEVICE_LIMITS) -> bool:
    """Return True if the inference service refuses an image in full size by default.

    Args:
        image: the image, in any form. One that this device cannot read is not too large: the
            service says what is wrong with it.
        field: name of the image in errors.
        limits: limits of the device.
    """
    if isinstance(image, bytes) and len(image) > MAX_SERVICE_BYTES:
        return True
    try:
        width, height = size_of(image, field, limits)
    except SightlineError:
        return False
    return max(width, height) > MAX_SERVICE_SIDE or width * height > MAX_SERVICE_PIXELS


def downscaled(
    image: Image, size: tuple[int, int], field: str, limits: DeviceImageLimits = DEVICE_LIMITS
) -> tuple[bytes, Scale] | None:
    """Return an image as a JPEG that fits a model's input, and its scale.

    The pixels are those of the model's own letterbox (`vision.letterbox`): answers for the full
    and for the downscaled image differ only by the loss of the JPEG.

    Args:
        image: the image, in any form.
        size: width and height of the model's input in pixels.
        field: name of the image in errors.
        limits: limits of the device.

    Returns:
        The JPEG and its scale; None if the image already fits.

    Raises:
        SightlineError: INVALID_ARGUMENT: the image cannot be decoded.
    """
    import numpy as np
    import PIL.Image

    from vision import letterbox_image

    array = pixels(image, field, limits)
    height, width, _ = array.shape
    gain = min(size[0] / width, size[1] / height)
    columns, rows = (max(round(side * gain), 1) for side in (width, height))
    if gain >= 1 or (columns, rows) == (width, height):
        return None
    fitted, _ = letterbox_image(array, (rows, columns))
    small = np.rint(fitted[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(small).save(out, "JPEG", quality=QUALITY)
    return out.getvalue(), Scale(width, height, width / columns, height / rows)


@dataclass(frozen=True, slots=True)
class ModelInput:
    """The input size of a model.

    Attributes:
        model: name and version of the model.
        size: width and height of its input in pixels; None: do not downscale images for it.
    """

    model: ModelHint
    size: tuple[int, int] | None


def model_inputs(models: tuple[ModelInfo, ...]) -> Mapping[ModelHint, ModelInput]:
    """Return the input size of each model, by every hint that selects it.

    Images for a classifier are not downscaled: it crops them itself.
    """
    inputs: dict[ModelHint, ModelInput] = {}
    for model in models:
        exact = ModelHint(model.name, model.version)
        size = (model.input_width, model.input_height)
        fits = model.task in _FITTED and all(size)
        inputs[exact] = ModelInput(exact, size if fits else None)
        if model.default_version:
            inputs[ModelHint(model.name, "")] = inputs[exact]
            if model.default_model:
                inputs[ModelHint("", "")] = inputs[exact]
    return inputs
