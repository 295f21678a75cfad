"""A loaded model, and the processing of one image with it: decode, run, decode the output."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
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
from inference_service.validate import MAX_RESPONSE_BYTES, bad_image, result_too_large
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
    PolygonMask,
    RleMask,
    fit_mask,
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
    require_time: Callable[[], None] = lambda: None
    """Function that raises an error if no time is left. It is called after each mask."""
    max_bytes: int = MAX_RESPONSE_BYTES
    """Maximum size of all masks of the image."""
    rows: int = 1
    _size: tuple[int, int] = (0, 0)
    _box: Letterbox | None = None
    _mask_bytes: int = 0

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
            SightlineError: INTERNAL, `MODEL_OUTPUT_INVALID`: the output is invalid;
                INVALID_ARGUMENT, `RESULT_TOO_LARGE`: its masks take too many bytes;
                RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: no memory to make the masks; else see
                `require_time`.
        """
        try:
            return ImagePrediction(*self._size, self._decode([output[0] for output in outputs]))
        except ModelError as error:
            raise self.model.failed(error) from error

    def _decode(self, outputs: Sequence[NDArray[Any]]) -> Detections | Classes:
        network, spec, parameters = self.model.network, self.model.spec, self.parameters
        if isinstance(network, OnnxClassifier):
            return network.decode(
                outputs[0], temperature=spec.temperature, top_k=parameters.top_k or spec.top_k
            )
        if self._box is None:
            raise RuntimeError("finish was called before prepare")
        thresholds = spec.thresholds
        mask_format = parameters.mask_format or thresholds.mask_format
        pixels = 0 if mask_format == "off" else network.masks_bytes(*self._size)
        with self.reserve(pixels) if pixels else nullcontext():
            return network.decode_outputs(
                outputs,
                self._box,
                confidence=_chosen(parameters.confidence, thresholds.confidence),
                iou=_chosen(parameters.iou, thresholds.iou),
                max_detections=parameters.max_detections or thresholds.max_detections,
                mask_format=mask_format,
                tolerance=self._tolerance,
                on_mask=self._keep,
            )

    @property
    def _tolerance(self) -> float:
        own = self.model.spec.thresholds.polygon_tolerance
        return _chosen(self.parameters.polygon_tolerance, own)

    def _keep(self, mask: RleMask | PolygonMask) -> RleMask | PolygonMask:
        """Return a mask within the contract's limits, if all masks so far are within ours."""
        self.require_time()
        mask = fit_mask(mask, self._tolerance)
        if isinstance(mask, RleMask):
            self._mask_bytes += len(mask.counts)
        else:
            self._mask_bytes += sum(ring.nbytes for ring in mask.rings)
        if self._mask_bytes > self.max_bytes:
            raise result_too_large(self.image.index, self.max_bytes)
        return mask


def _chosen(value: float | None, own: float) -> float:
    """Return a parameter of the request, or else the model's own setting."""
    return own if value is None else value
