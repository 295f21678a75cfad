"""Conversion between other libraries' results and records, without importing them early."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeGuard

from edge.detect.results import arrays_of, classes_of, detections_of
from edge.names import image_id_of, model_name_of
from edge.records import Detection, DetectionArrays, Prediction
from servicekit.addresses import url_scheme

if TYPE_CHECKING:
    from supervision import Detections
    from ultralytics.engine.model import Model
    from ultralytics.engine.predictor import BasePredictor
    from ultralytics.engine.results import Results

_FINAL = "on_predict_batch_end"
"""Event after that of the trackers (`on_predict_postprocess_end`); times are known by then."""

_UNNAMED = re.compile(r"image\d+\.jpg")
"""Path that ultralytics makes up for an array or a tensor."""


class HasDetections(Protocol):
    """An object with a `detections` attribute."""

    @property
    def detections(self) -> Sequence[Detection]:
        """The detections in one image."""


def is_ultralytics(candidate: object) -> "TypeGuard[Results]":
    """Return True if an object looks like ultralytics' `Results` of one image."""
    return all(hasattr(candidate, name) for name in ("boxes", "names", "orig_shape", "speed"))


def from_ultralytics(
    results: "Results",
    *,
    image_id: str | None = None,
    model_name: str = "ultralytics",
    model_version: str = "",
    labels: Mapping[str, str] | None = None,
) -> Prediction:
    """Return a prediction made from ultralytics' `Results` of one image.

    Args:
        results: the results of one image. The five best classes of a classifier become detections
            without a box. Masks, keypoints and rotated boxes are ignored.
        image_id: name of the image. None: the name of its file. All frames of a video have the
            video's name then, so name them, as in `f"clip.mp4#{number:06d}"`, or use
            `PredictionLogger.attach`, which does.
        model_name: name of the model, which the results do not contain.
        model_version: version of the model. Empty: not known.
        labels: see `Prediction.labels`.

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
    height, width = results.orig_shape
    stage_ms = [part for part in (results.speed or {}).values() if part is not None]
    return Prediction(
        image_id or image_id_of(_source_name(results.path)),
        model_name,
        model_version=model_version,
        image_width=width,
        image_height=height,
        inference_seconds=sum(stage_ms) / 1000 if stage_ms else None,
        detections=classes_of(results) or _boxes_of(results),
        labels=labels or {},
    )


def attach(
    model: "Model", callback: "Callable[[Results, str | None], object]"
) -> Callable[[], None]:
    """Call a function with the `Results` of each image that a model predicts or tracks.

    The call comes after a tracker has set its ids and before `predict` or `track` returns the
    results. In a stream, it comes for all images of a batch before the first is returned.

    Args:
        model: an ultralytics model, such as `YOLO`.
        callback: the function. It also gets a name for the image where `Results.path` is the same
            for every image, and otherwise None: `clip.mp4#000013` for a frame of a video, counted
            from 0 among the frames that the model gets in this run; the source and the time for a
            camera, a screen, an array or a tensor. An exception that it raises ends the prediction.

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
            callback(results, _frame_name(predictor, results.path, frames))

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
    if mode == "stream" or ((kind.from_img or kind.tensor) and _UNNAMED.fullmatch(path)):
        name = _source_name(path)
        if mode == "stream" and name != Path(path).name:
            name += f" {predictor.dataset.sources.index(path)}"
        return image_id_of(f"{name}@{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}")
    return None


def _source_name(path: str) -> str:
    """Return the name of a file; of a URL only its scheme, because it may contain credentials."""
    scheme = url_scheme(
        path
    )  # ultralytics writes `_` for `:` and `/`: no credential can be cut out
    return f"{scheme} stream" if scheme else Path(path).name


def name_of(model: "Model") -> str:
    """Return the name of an ultralytics model: the name of its file without the suffix."""
    return model_name_of(Path(str(getattr(model, "model_name", None) or "ultralytics")))


def is_supervision(candidate: object) -> "TypeGuard[Detections]":
    """Return True if an object looks like supervision's `Detections`."""
    return all(hasattr(candidate, name) for name in ("xyxy", "class_id", "tracker_id", "data"))


def from_supervision(
    detections: "Detections",
    image_id: str,
    model_name: str,
    *,
    model_version: str = "",
    image_width: int = 0,
    image_height: int = 0,
    names: Mapping[int, str] | Sequence[str] | None = None,
) -> Prediction:
    """Return a prediction made from supervision's `Detections`, which do not name their image.

    Args:
        detections: detections with `confidence` and `class_id`. Masks are ignored. A `tracker_id`
            of -1 means that the object is not tracked.
        image_id: name of the image.
        model_name: name of the model.
        model_version: version of the model. Empty: not known.
        image_width: width in pixels. 0: not known.
        image_height: height in pixels. 0: not known.
        names: the model's labels by class_id. None: those in `data["class_name"]`, if present.

    Raises:
        ValueError: `confidence` or `class_id` is missing, or an array is invalid; see
            `DetectionArrays`.

    Example:
        >>> import numpy as np
        >>> from sightline import from_supervision
        >>> from supervision import Detections
        >>> detections = Detections(
        ...     xyxy=np.array([[10.0, 20.0, 110.0, 220.0]]),
        ...     confidence=np.array([0.9]),
        ...     class_id=np.array([0]),
        ... )
        >>> prediction = from_supervision(detections, "photo.jpg", "parts", names=["part"])
        >>> prediction.detections[0].class_name
        'part'
    """
    for name in ("confidence", "class_id"):
        if getattr(detections, name) is None:
            raise ValueError(f"detections.{name} must be an array (got None)")
    tracks = detections.tracker_id
    untracked = [] if tracks is None else [track < 0 for track in tracks]
    rows: DetectionArrays | tuple[Detection, ...] = DetectionArrays(
        detections.xyxy,
        detections.confidence,
        detections.class_id,
        track_id=None if all(untracked) else tracks,
        names=names,
        class_name=detections.data.get("class_name") if names is None else None,
    )
    if any(untracked) and not all(untracked):  # arrays are tracked as a whole or not
        rows = tuple(
            replace(row, track_id=None) if is_untracked else row
            for row, is_untracked in zip(rows, untracked, strict=True)
        )
    return Prediction(
        image_id,
        model_name,
        model_version=model_version,
        image_width=image_width,
        image_height=image_height,
        detections=rows,
    )


def to_supervision(detections: "Sequence[Detection] | HasDetections") -> "Detections":
    """Return detections as supervision's `Detections`, in their order.

    Args:
        detections: detections with boxes, or an object that has them: an `Answer`, a
            `DetectorResult`, an `InferAnswer` or a `Prediction`.

    Returns:
        Detections with `confidence`, `class_id` and `data["class_name"]`. If at least one is
        tracked, also with `tracker_id`, which is -1 for the others.

    Raises:
        ModuleNotFoundError: supervision is not installed.
        ValueError: a detection has no box, such as that of a classifier.

    Example:
        >>> from sightline import Box, Detection, Prediction, to_supervision
        >>> scratch = Detection(3, "scratch", 0.875, Box(10, 20, 110, 220))
        >>> detections = to_supervision(Prediction("photo.jpg", "parts", detections=[scratch]))
        >>> detections.xyxy.tolist(), detections.confidence.tolist()
        ([[10.0, 20.0, 110.0, 220.0]], [0.875])
    """
    import numpy as np
    from supervision import Detections

    rows = list(detections if isinstance(detections, Sequence) else detections.detections)
    tracks = [-1 if row.track_id is None else row.track_id for row in rows]
    return Detections(
        xyxy=np.array([_corners(row) for row in rows], np.float32).reshape(-1, 4),
        confidence=np.array([row.confidence for row in rows], np.float32),
        class_id=np.array([row.class_id for row in rows], int),
        tracker_id=np.array(tracks, int) if any(row.track_id is not None for row in rows) else None,
        data={"class_name": np.array([row.class_name for row in rows], str)},
    )


def _corners(row: Detection) -> tuple[float, float, float, float]:
    if row.box is None:
        raise ValueError("box must not be None: supervision's Detections consist of boxes")
    return row.box.x_min, row.box.y_min, row.box.x_max, row.box.y_max


def _boxes_of(results: "Results") -> DetectionArrays | tuple[Detection, ...]:
    try:
        return arrays_of(results) or ()
    except ValueError:  # NaN: log it all the same; the server keeps it as rejected
        return detections_of(results)
