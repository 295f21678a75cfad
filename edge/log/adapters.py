"""Other libraries' results as records. Imports none of them."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from edge.detect.results import detections_of
from edge.records import Detection, Prediction

if TYPE_CHECKING:
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
        detections=_classes_of(results) or detections_of(results),
    )


def _classes_of(results: "Results") -> tuple[Detection, ...]:
    best = results.probs
    if best is None:
        return ()
    pairs = zip(best.top5, best.top5conf.tolist(), strict=True)
    return tuple(Detection(index, results.names[index], share) for index, share in pairs)
