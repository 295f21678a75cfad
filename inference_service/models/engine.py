"""One loaded model: from an encoded picture to what is in it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import numpy as np
from numpy.typing import NDArray

from inference_service.admission import Estimate
from inference_service.batch import UnwantedError, Wanted
from inference_service.domain import Parameters, Picture, Seen
from inference_service.models.model_spec import ModelSpec
from inference_service.validate import bad_picture
from servicekit.errors import SightlineError
from servicekit.vision import (
    Detections,
    ImageError,
    ImageLimits,
    Letterbox,
    ModelError,
    OnnxDetector,
    decode_image,
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is loaded and warm."""

    name: str
    version: str
    spec: ModelSpec
    detector: OnnxDetector
    estimate: Estimate = field(default_factory=Estimate)
    """How long it takes for one picture, from what it did of late."""


def look(
    model: Model,
    picture: Picture,
    parameters: Parameters,
    limits: ImageLimits,
    wanted: Wanted,
    clock: Callable[[], float] = time.perf_counter,
) -> Seen:
    """Looks at one picture. Blocks; safe in several threads at once.

    Args:
        model: which model.
        picture: what to look at.
        parameters: what the caller wants done differently from the model's own thresholds.
        limits: what a picture may be at most; held again before it is decoded.
        wanted: asked before the model is run.
        clock: seconds, for the times of the stages.

    Raises:
        SightlineError: INVALID_ARGUMENT: the picture cannot be decoded; INTERNAL: the model failed.
        UnwantedError: nobody waits for the result any more.
    """
    began = clock()
    try:
        pixels = decode_image(picture.data, limits)
    except ImageError as error:
        raise bad_picture(picture.index, error) from error
    batch, box = model.detector.prepare(pixels)
    if not wanted():
        raise UnwantedError
    decoded = clock()
    try:
        (output,) = model.detector.run(batch)
        inferred = clock()
        found = _read(model, output, box, parameters)
    except ModelError as error:
        raise _failed(model, error) from error
    height, width, _ = pixels.shape
    return Seen(width, height, found, decoded - began, inferred - decoded, clock() - inferred)


def _read(
    model: Model, output: NDArray[np.float32], box: Letterbox, asked: Parameters
) -> Detections:
    own = model.spec.thresholds
    return model.detector.decode(
        output,
        box,
        confidence=own.confidence if asked.confidence is None else asked.confidence,
        iou=own.iou if asked.iou is None else asked.iou,
        max_detections=asked.max_detections or own.max_detections,
    )


def _failed(model: Model, error: ModelError) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.INTERNAL,
        error.reason,
        f"model {model.name} version {model.version}: {error.message}",
    )
