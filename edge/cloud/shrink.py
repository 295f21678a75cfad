"""Images made as small as the model that will see them, before they leave."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge.cloud.types import ImageAnswer, ModelHint, ModelInfo, ModelTask
from edge.detect.base import Image
from edge.detect.images import pixels
from edge.records import Box, Detection

QUALITY = 95
"""Of the JPEG that is sent."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How an image that was sent relates to the one that was asked about.

    Attributes:
        width: of the upright original, in pixels.
        height: the same, downwards.
        across: pixels of the original for one that was sent, > 1.
        down: the same, downwards; it differs by rounding only.
    """

    width: int
    height: int
    across: float
    down: float

    def restored(self, answer: ImageAnswer) -> ImageAnswer:
        """Return the answer in pixels of the original."""
        if answer.error is not None:
            return answer
        return replace(
            answer,
            image_width=self.width,
            image_height=self.height,
            detections=tuple(map(self._restored, answer.detections)),
        )

    def _restored(self, found: Detection) -> Detection:
        if found.box is None:
            return found
        box = found.box
        return replace(
            found,
            box=Box(
                min(box.x_min * self.across, float(self.width)),
                min(box.y_min * self.down, float(self.height)),
                min(box.x_max * self.across, float(self.width)),
                min(box.y_max * self.down, float(self.height)),
            ),
        )


def shrunk(image: Image, size: tuple[int, int], field: str) -> tuple[bytes, Scale] | None:
    """Return an image as a JPEG that just fits a model's input, and how it relates to it.

    The pixels are those that the model's own letterbox makes (`vision.letterbox`), so
    that only the JPEG's loss tells the answers apart.

    Args:
        image: the image, in any form.
        size: width and height of the model's input, in pixels.
        field: the image's name in errors.

    Returns:
        None: it fits already.

    Raises:
        SightlineError: INVALID_ARGUMENT: not an image that can be read.
    """
    import numpy as np
    import PIL.Image

    from vision import letterbox_image

    array = pixels(image, field)
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
    """What the images for a model are made to fit.

    Attributes:
        model: name and version of the model.
        size: width and height of its input, in pixels; None: its images are to go whole.
    """

    model: ModelHint
    size: tuple[int, int] | None


def model_inputs(models: tuple[ModelInfo, ...]) -> Mapping[ModelHint, ModelInput]:
    """Return the input of each model by every hint that means it.

    Images for a classifier go whole: what it cuts out of them is its own business.
    """
    inputs: dict[ModelHint, ModelInput] = {}
    for model in models:
        exact = ModelHint(model.name, model.version)
        size = (model.input_width, model.input_height)
        fits = model.task is ModelTask.DETECT and all(size)
        inputs[exact] = ModelInput(exact, size if fits else None)
        if model.default_version:
            inputs[ModelHint(model.name, "")] = inputs[exact]
            if model.default_model:
                inputs[ModelHint("", "")] = inputs[exact]
    return inputs
