"""Other libraries' results as records, and the way back. None is imported before it is needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeGuard

from edge.detect.results import arrays_of, classes_of, detections_of
from edge.records import Detection, DetectionArrays, Prediction

if TYPE_CHECKING:
    from supervision import Detections
    from ultralytics.engine.model import Model
    from ultralytics.engine.predictor import BasePredictor
    from ultralytics.engine.results import Results

_FINAL = "on_predict_batch_end"
"""The event after a tracker's own (`on_predict_postprocess_end`), when times are known as well."""


class Findings(Protocol):
    """What has detections."""

    @property
    def detections(self) -> Sequence[Detection]:
        """What was found."""


def is_ultralytics(candidate: object) -> "TypeGuard[Results]":
    """Say whether something looks like the `Results` of one picture."""
    return all(hasattr(candidate, name) for name in ("boxes", "names", "orig_shape", "speed"))


def from_ultralytics(
    results: "Results",
    *,
    image_id: str | None = None,
    model_name: str = "ultralytics",
    model_version: str = "",
    labels: Mapping[str, str] | None = None,
) -> Prediction:
    """Return what an ultralytics model said about one picture.

    Args:
        results: of one picture; of a classifier, the five best classes become detections without
            a box. Masks, keypoints and turned boxes are left out.
        image_id: the picture's name; None: the name of its file (for a video, the video's).
        model_name: results do not say which model they are from.
        model_version: as above; empty: not known.
        labels: see `Prediction.labels`.
    """
    height, width = results.orig_shape
    taken = [part for part in (results.speed or {}).values() if part is not None]
    return Prediction(
        image_id or Path(results.path).name,
        model_name,
        model_version=model_version,
        image_width=width,
        image_height=height,
        inference_seconds=sum(taken) / 1000 if taken else None,
        detections=classes_of(results) or _boxes_of(results),
        labels=labels or {},
    )


def attach(model: "Model", take: "Callable[[Results], object]") -> Callable[[], None]:
    """Has a function called with the `Results` of each picture that a model predicts or tracks.

    It is called before the caller of `predict` or `track` has them, when a tracker has put in its
    ids; in a stream, for all pictures of a batch before the first of them is handed out.

    Args:
        model: an ultralytics model, such as `YOLO`.
        take: what it raises ends the prediction.

    Returns:
        What ends it again; may be called more than once.

    Raises:
        TypeError: the model takes no callbacks.
    """
    listeners = getattr(model, "callbacks", None)
    if not isinstance(listeners, Mapping) or not hasattr(model, "add_callback"):
        raise TypeError(f"model must be an ultralytics model (got {type(model).__name__})")

    def on_batch_end(predictor: "BasePredictor") -> None:
        for results in predictor.results:
            take(results)

    def detach() -> None:
        if on_batch_end in listeners[_FINAL]:
            listeners[_FINAL].remove(on_batch_end)

    model.add_callback(_FINAL, on_batch_end)
    return detach


def name_of(model: "Model") -> str:
    """Return the name of an ultralytics model: its file's, without the suffix."""
    return Path(str(getattr(model, "model_name", None) or "ultralytics")).stem


def is_supervision(candidate: object) -> "TypeGuard[Detections]":
    """Say whether something looks like supervision's `Detections`."""
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
    """Return what is in supervision's `Detections`, which do not say of which picture they are.

    Args:
        detections: with `confidence` and `class_id`; masks are left out. A `tracker_id` of -1
            stands for an object that is not tracked.
        image_id: the picture's name.
        model_name: name of the model.
        model_version: its version; empty: not known.
        image_width: in pixels; 0: not known.
        image_height: in pixels; 0: not known.
        names: the model's labels by class_id. None: those in `data["class_name"]`, if there.

    Raises:
        ValueError: they have no `confidence` or no `class_id`, or see `DetectionArrays`.
    """
    for name in ("confidence", "class_id"):
        if getattr(detections, name) is None:
            raise ValueError(f"{name} must be in the Detections (got None)")
    tracks = detections.tracker_id
    untracked = [] if tracks is None else [track < 0 for track in tracks]
    found: DetectionArrays | tuple[Detection, ...] = DetectionArrays(
        detections.xyxy,
        detections.confidence,
        detections.class_id,
        track_id=None if all(untracked) else tracks,
        names=names,
        class_name=detections.data.get("class_name") if names is None else None,
    )
    if any(untracked) and not all(untracked):  # arrays know no object that alone is not tracked
        found = tuple(
            replace(row, track_id=None) if lost else row
            for row, lost in zip(found, untracked, strict=True)
        )
    return Prediction(
        image_id,
        model_name,
        model_version=model_version,
        image_width=image_width,
        image_height=image_height,
        detections=found,
    )


def to_supervision(found: "Sequence[Detection] | Findings") -> "Detections":
    """Return detections as supervision's `Detections`, in their order.

    Args:
        found: detections with boxes; or what has them: an `Answer`, a `DetectorResult`, an
            `InferAnswer`, a `Prediction`.

    Returns:
        With `confidence`, `class_id` and `data["class_name"]`; `tracker_id` where one at least is
        tracked, of the others -1.

    Raises:
        ModuleNotFoundError: supervision is not installed.
        ValueError: a detection has no box (a classifier's).
    """
    import numpy as np
    from supervision import Detections

    rows = list(found if isinstance(found, Sequence) else found.detections)
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
        raise ValueError("box must be in each detection: supervision's Detections are boxes")
    return row.box.x_min, row.box.y_min, row.box.x_max, row.box.y_max


def _boxes_of(results: "Results") -> DetectionArrays | tuple[Detection, ...]:
    try:
        return arrays_of(results) or ()
    except ValueError:  # NaN: the loop goes on, and the server keeps it as rejected
        return detections_of(results)
