"""A loaded model, and the processing of one image with it: decode, run, decode the output."""

import logging
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from inference_service.domain import CheckedImage, ImagePrediction, Parameters
from inference_service.models.model_spec import ModelSpec
from inference_service.serving.admission import Lane
from inference_service.serving.pixel_budget import Reserve, reserve_none
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
    """A loaded and warmed-up version of a model."""

    name: str
    version: str
    spec: ModelSpec
    network: OnnxYolo | OnnxClassifier
    lane: Lane = field(default_factory=Lane)
    """Batching parameters and measured run times."""

    def run(self, batch: NDArray[Any]) -> Outputs:
        """Run a batch `[N, ...]`, and return every output `[N, ...]`; blocks; thread-safe.

        Raises:
            SightlineError: INTERNAL, `MODEL_RUN_FAILED`: the runtime or its device failed;
                RESOURCE_EXHAUSTED, `OUT_OF_MEMORY`.
        """
        try:
            return self.network.session.run(batch)
        except ModelError as error:
            raise self.failed(error) from error
        except MemoryError as error:
            logger.warning("not enough memory for a run of model %s: %s", self.name, error)
            raise out_of_memory() from error

    def failed(self, error: ModelError) -> SightlineError:
        """Return the caller's error for a failure of the model."""
        return SightlineError(
            grpc.StatusCode.INTERNAL,
            error.reason,
            f"model {self.name} version {self.version}: {error.message}",
        )


def prepare_image(
    model: Model, opened: OpenedImage, reserve: Reserve
) -> tuple[NDArray[np.float32], Letterbox | None, tuple[int, int]]:
    """Decode an image and convert it to a model's input; release its pixels immediately.

    Args:
        model: determines the preprocessing.
        opened: the image, which can be decoded once.
        reserve: reserves memory for its pixels.

    Returns:
        The input `[1, 3, h, w]`, the image's letterbox, and the image's width and height.

    Raises:
        ImageError: it cannot be decoded.
        SightlineError: RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: no memory for its pixels.
    """
    width, height = opened.info.width, opened.info.height
    with reserve(opened.memory + model.network.prepare_bytes(width, height)):
        pixels = opened.decode()
        model_input, box = model.network.prepare(pixels)
        size = pixels.shape[1], pixels.shape[0]
        del pixels  # before the reservation ends
    return model_input, box, size


@dataclass(slots=True)
class ImageWork:
    """The processing of one image by a model; see `serving.work.MemberWork`."""

    model: Model
    image: CheckedImage
    parameters: Parameters
    """Parameters of the request, which override the model's settings."""
    reserve: Reserve = reserve_none
    rows: int = 1
    _size: tuple[int, int] = (0, 0)
    _box: Letterbox | None = None

    @property
    def effort(self) -> int:
        """Number of pixels to decode."""
        return self.image.opened.effort

    def prepare(self) -> NDArray[np.float32]:
        """Decode the image and return the network's input `[1, 3, h, w]`.

        Raises:
            SightlineError: INVALID_ARGUMENT: it cannot be decoded; RESOURCE_EXHAUSTED,
                `TOO_MUCH_IN_FLIGHT`: no memory for its pixels.
        """
        opened = self.image.opened
        try:
            model_input, self._box, self._size = prepare_image(self.model, opened, self.reserve)
        except ImageError as error:
            raise bad_image(self.image.index, error, self.image.origin) from error
        return model_input

    def finish(self, outputs: Outputs) -> ImagePrediction:
        """Decode the network's outputs for the image, each `[1, ...]`.

        Raises:
            SightlineError: INTERNAL, `MODEL_OUTPUT_INVALID`: the output is invalid.
        """
        try:
            return ImagePrediction(*self._size, self._decode(outputs[0][0]))
        except ModelError as error:
            raise self.model.failed(error) from error

    def _decode(self, output: NDArray[Any]) -> Detections | Classes:
        network, spec, parameters = self.model.network, self.model.spec, self.parameters
        if isinstance(network, OnnxClassifier):
            return network.decode(
                output, temperature=spec.temperature, top_k=parameters.top_k or spec.top_k
            )
        if self._box is None:
            raise RuntimeError("finish was called before prepare")
        thresholds = spec.thresholds
        return network.decode(
            output,
            self._box,
            confidence=thresholds.confidence
            if parameters.confidence is None
            else parameters.confidence,
            iou=thresholds.iou if parameters.iou is None else parameters.iou,
            max_detections=parameters.max_detections or thresholds.max_detections,
        )
