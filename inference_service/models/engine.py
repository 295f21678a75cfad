"""One loaded model, and one image's way through it: decode, run, read the output."""

import logging
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from inference_service.domain import CheckedImage, ImagePrediction, Parameters
from inference_service.models.model_spec import ModelSpec
from inference_service.serving.admission import Lane
from inference_service.serving.pixel_room import Hold, hold_none
from inference_service.serving.work import Outputs
from inference_service.validate import bad_image
from servicekit.errors import SightlineError, out_of_memory
from vision import (
    Classes,
    Detections,
    ImageError,
    Letterbox,
    ModelError,
    OnnxClassifier,
    OnnxYolo,
    OpenedImage,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A version of a model that is loaded and warm."""

    name: str
    version: str
    spec: ModelSpec
    network: OnnxYolo | OnnxClassifier
    lane: Lane = field(default_factory=Lane)
    """How it is run, and how long that takes."""

    def run(self, batch: NDArray[Any]) -> Outputs:
        """Run `[N, ...]` to every output `[N, ...]`; blocks; safe in several threads at once.

        Raises:
            SightlineError: INTERNAL, `MODEL_RUN_FAILED`: the runtime or its device failed;
                RESOURCE_EXHAUSTED, `OUT_OF_MEMORY`.
        """
        try:
            return self.network.session.run(batch)
        except ModelError as error:
            raise self.failed(error) from error
        except MemoryError as error:
            logger.warning("no memory for a run of model %s: %s", self.name, error)
            raise out_of_memory() from error

    def failed(self, error: ModelError) -> SightlineError:
        """Return what the caller is told of a model that failed."""
        return SightlineError(
            grpc.StatusCode.INTERNAL,
            error.reason,
            f"model {self.name} version {self.version}: {error.message}",
        )


def prepare_image(
    model: Model, opened: OpenedImage, hold: Hold
) -> tuple[NDArray[np.float32], Letterbox | None, tuple[int, int]]:
    """Decode an image and make a network's input of it; its pixels are dropped at once.

    Args:
        model: by whose rules it is prepared.
        opened: the image, to be decoded once.
        hold: holds room for its pixels.

    Returns:
        The input `[1, 3, h, w]`, how the image lies in it, and the image's width and height.

    Raises:
        ImageError: it cannot be decoded.
        SightlineError: RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: there is no room for its pixels.
    """
    width, height = opened.info.width, opened.info.height
    with hold(opened.memory + model.network.prepare_bytes(width, height)):
        pixels = opened.decode()
        made, box = model.network.prepare(pixels)
        size = pixels.shape[1], pixels.shape[0]
        del pixels  # before the room is given to the next one
    return made, box, size


@dataclass(slots=True)
class ImageWork:
    """One image's way through a model; see `serving.work.Work`."""

    model: Model
    image: CheckedImage
    parameters: Parameters
    """What the caller wants done differently from the model's own settings."""
    hold: Hold = hold_none
    rows: int = 1
    _size: tuple[int, int] = (0, 0)
    _box: Letterbox | None = None

    @property
    def effort(self) -> int:
        """Pixels that are decoded."""
        return self.image.opened.effort

    def prepare(self) -> NDArray[np.float32]:
        """Decode the image and make the network's input `[1, 3, h, w]` of it.

        Raises:
            SightlineError: INVALID_ARGUMENT: it cannot be decoded; RESOURCE_EXHAUSTED,
                `TOO_MUCH_IN_FLIGHT`: there is no room for its pixels.
        """
        opened = self.image.opened
        try:
            made, self._box, self._size = prepare_image(self.model, opened, self.hold)
        except ImageError as error:
            raise bad_image(self.image.index, error, self.image.origin) from error
        return made

    def finish(self, outputs: Outputs) -> ImagePrediction:
        """Read the network's output for the image, each `[1, ...]`.

        Raises:
            SightlineError: INTERNAL, `MODEL_OUTPUT_INVALID`: the model answers nonsense.
        """
        try:
            return ImagePrediction(*self._size, self._read(outputs[0][0]))
        except ModelError as error:
            raise self.model.failed(error) from error

    def _read(self, output: NDArray[Any]) -> Detections | Classes:
        network, spec, asked = self.model.network, self.model.spec, self.parameters
        if isinstance(network, OnnxClassifier):
            return network.decode(
                output, temperature=spec.temperature, top_k=asked.top_k or spec.top_k
            )
        if self._box is None:
            raise RuntimeError("finish comes after prepare")
        own = spec.thresholds
        return network.decode(
            output,
            self._box,
            confidence=own.confidence if asked.confidence is None else asked.confidence,
            iou=own.iou if asked.iou is None else asked.iou,
            max_detections=asked.max_detections or own.max_detections,
        )
