"""Other libraries' results as records. Imports none of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from edge.detect.results import arrays_of, detections_of
from edge.records import Detection, DetectionArrays, Prediction

if TYPE_CHECKING:
    from supervision import Detections
    from ultralytics.engine.results import Results


def is_ultralytics(candidate: object) -> "TypeGuard[Results]":
    """Says whether something looks like the `Results` of one picture."""
    return all(hasattr(candidate, name) for name in ("boxes", "names", "orig_shape", "speed"))


def from_ultralytics(
    results: "Results",
    *,
    image_id: str | None = None,
    model_name: str = "ultralytics",
    model_version: str = "",
) -> Prediction:
    """Returns what an ultralytics model said about one picture.

    Args:
        results: of one picture; of a classifier, the five best classes become detections without
            a box. Masks, keypoints and turned boxes are left out.
        image_id: the picture's name; None: the name of its file (for a video, the video's).
        model_name: results do not say which model they are from.
        model_version: as above; empty: not known.
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
        detections=_classes_of(results) or _boxes_of(results),
    )


def is_supervision(candidate: object) -> "TypeGuard[Detections]":
    """Says whether something looks like supervision's `Detections`."""
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
    """Returns what is in supervision's `Detections`, which do not say of which picture they are.

    Args:
        detections: with `confidence` and `class_id`; masks are left out.
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
    found = DetectionArrays(
        detections.xyxy,
        detections.confidence,
        detections.class_id,
        track_id=detections.tracker_id,
        names=names,
        class_name=detections.data.get("class_name") if names is None else None,
    )
    return Prediction(
        image_id,
        model_name,
        model_version=model_version,
        image_width=image_width,
        image_height=image_height,
        detections=found,
    )


def _boxes_of(results: "Results") -> DetectionArrays | tuple[Detection, ...]:
    try:
        return arrays_of(results) or ()
    except ValueError:  # NaN: the loop goes on, and the server keeps it as rejected
        return detections_of(results)


def _classes_of(results: "Results") -> tuple[Detection, ...]:
    best = results.probs
    if best is None:
        return ()
    pairs = zip(best.top5, best.top5conf.tolist(), strict=True)
    return tuple(Detection(index, results.names[index], share) for index, share in pairs)
