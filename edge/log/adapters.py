"""Conversion of ultralytics' results to records, without importing it early."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from edge.detect.results import classes_of, columns_of, size_of
from edge.log.fitting import detections_of, fitting
from edge.log.image_names import UNNAMED, name_of_image, source_name, with_time
from edge.names import image_id_of, model_name_of
from edge.records import Detection, Prediction
from servicekit.mask_formats import POLYGON_TOLERANCE, MaskFormat

if TYPE_CHECKING:
    from ultralytics.engine.model import Model
    from ultralytics.engine.predictor import BasePredictor
    from ultralytics.engine.results import Results

_FINAL = "on_predict_batch_end"
"""Event after that of the trackers (`on_predict_postprocess_end`); times are known by then."""
_YEAR = 31_557_600.0  # in seconds
_KNOWN = {"boxes", "obb", "probs", "masks", "keypoints"}
"""Parts of `Results` that a record holds. Others are those of a whole image, such as `depth`."""
UNKNOWN_MODEL = "ultralytics"
"""Name of a model that nobody names: `Results` do not."""


def is_ultralytics(candidate: object) -> "TypeGuard[Results]":
    """Return True if an object looks like ultralytics' `Results` of one image."""
    return all(hasattr(candidate, name) for name in ("boxes", "names", "orig_shape", "speed"))


def from_ultralytics(
    results: "Results",
    *,
    image_id: str | None = None,
    model_name: str = UNKNOWN_MODEL,
    model_version: str = "",
    labels: Mapping[str, str] | None = None,
    mask_format: MaskFormat = "polygon",
    polygon_tolerance: float = POLYGON_TOLERANCE,
) -> Prediction:
    """Return a prediction made from ultralytics' `Results` of one image.

    The tasks detect, segment, pose and obb give a box for each object, and a mask, keypoints or a
    rotated box beside it. The five best classes of a classifier become detections without a box.

    A result that is not as it should be does not end the program. A class without a name gets an
    empty one. What no record can hold is left out and counted in `Prediction.left_out`, and by the
    logger in `LoggerStats.left_out`. A result with NaN or a negative size is kept as it is; the
    server stores it as rejected.

    Args:
        results: the results of one image.
        image_id: name of the image. None: the name of its file, or, where many images have the same
            path, that name and the time: a frame of a video is
            `clip.mp4@2026-01-31T12:00:00.000000Z` and an array `image0.jpg@...`.
            `PredictionLogger.attach` numbers the frames of a video.
        model_name: name of the model, which the results do not contain.
        model_version: version of the model. Empty: not known.
        labels: see `Prediction.labels`.
        mask_format: format of the masks: `polygon`, `rle` (COCO's run lengths, which are exact and
            keep holes) or `off`.
        polygon_tolerance: largest distance between a polygon and the outline of its mask in pixels.

    Raises:
        ValueError: an argument other than the results is wrong; see `Prediction`.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from sightline import from_ultralytics
        >>> from ultralytics.engine.results import Results
        >>> boxes = torch.tensor([[10.0, 20.0, 110.0, 220.0, 0.9, 0.0]])
        >>> image = np.zeros((480, 640, 3), np.uint8)
        >>> results = Results(image, "photo.jpg", {0: "part"}, boxes=boxes)
        >>> prediction = from_ultralytics(results, model_name="parts")
        >>> prediction.image_id, prediction.detections[0].class_name
        ('photo.jpg', 'part')
    """
    height, width = size_of(results)
    left_out: Counter[str] = Counter()
    for name in _others(getattr(results, "_keys", ())):
        if getattr(results, name) is not None:
            left_out[name] += 1

    def record(detections: Sequence[Detection]) -> Prediction:
        return Prediction(
            image_id or name_of_image(results.path),
            model_name,
            model_version=model_version,
            image_width=width,
            image_height=height,
            inference_seconds=_seconds(results),
            detections=detections,
            labels=labels or {},
            left_out=left_out or None,
        )

    detections: Sequence[Detection] = classes_of(results)
    if not detections:
        columns = columns_of(results, mask_format, polygon_tolerance)
        if columns is None:
            left_out.update(_without_boxes(results))
        else:
            detections = detections_of(columns, left_out)
    return fitting(record, detections, left_out)


@cache
def _others(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of those parts of `Results` that a record cannot hold."""
    return tuple(name for name in parts if name not in _KNOWN)


def _without_boxes(results: "Results") -> Counter[str]:
    """Return the number of masks and keypoints in results without boxes, by kind."""
    parts = {"mask": results.masks, "keypoints": results.keypoints}
    return Counter({kind: len(part) for kind, part in parts.items() if part is not None})


def _seconds(results: "Results") -> float | None:
    """Return the time of all stages, or None if it is not known or not a duration."""
    try:
        stage_ms = [part for part in (results.speed or {}).values() if part is not None]
        seconds = sum(stage_ms) / 1000
    except (AttributeError, TypeError):  # a program has put something else there
        return None
    return seconds if stage_ms and 0 <= seconds < _YEAR else None


def attach(
    model: "Model",
    callback: "Callable[[Results, str | None], object]",
    failed: Callable[[Exception], object],
) -> Callable[[], None]:
    """Call a function with the `Results` of each image that a model predicts or tracks.

    The call comes after a tracker has set its ids and before `predict` or `track` returns the
    results. In a stream, it comes for all images of a batch before the first is returned.

    Args:
        model: an ultralytics model, such as `YOLO`.
        callback: the function. It also gets a name for the image where `Results.path` is the same
            for every image, and otherwise None: `clip.mp4#000013` for a frame of a video, counted
            from 0 among the frames that the model gets in this run; the source and the time for a
            camera, a screen, an array or a tensor.
        failed: called with an exception that the function raises, because one that reached the
            model would end its prediction.

    Returns:
        A function that detaches the callback; it may be called repeatedly.

    Raises:
        TypeError: the model does not support callbacks.
    """
    listeners = getattr(model, "callbacks", None)
    if not isinstance(listeners, Mapping) or not hasattr(model, "add_callback"):
        raise TypeError(f"model must be an ultralytics model (got {type(model).__name__})")
    frames: Counter[str] = Counter()

    def on_batch_end(predictor: "BasePredictor") -> None:
        if predictor.seen <= len(predictor.results):  # the first batch of a run
            frames.clear()
        for results in predictor.results:
            try:
                callback(results, _frame_name(predictor, results.path, frames))
            except Exception as error:  # noqa: BLE001 - see `failed`
                failed(error)

    def detach() -> None:
        if on_batch_end in listeners[_FINAL]:
            listeners[_FINAL].remove(on_batch_end)

    model.add_callback(_FINAL, on_batch_end)
    return detach


def _frame_name(predictor: "BasePredictor", path: str, frames: Counter[str]) -> str | None:
    mode = predictor.dataset.mode
    if mode == "video":
        number = frames[path]
        frames[path] += 1
        return image_id_of(f"{Path(path).name}#{number:06d}")
    kind = predictor.source_type
    if mode == "stream" or ((kind.from_img or kind.tensor) and UNNAMED.fullmatch(path)):
        name = source_name(path)
        if mode == "stream" and name != Path(path).name:
            name += f" {predictor.dataset.sources.index(path)}"
        return with_time(name)
    return None


def name_of(model: "Model") -> str:
    """Return the name of an ultralytics model: the name of its file without the suffix."""
    return model_name_of(Path(str(getattr(model, "model_name", None) or UNKNOWN_MODEL)))
