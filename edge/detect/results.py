"""Conversion of ultralytics results to records. It does not import ultralytics."""

from typing import TYPE_CHECKING

from edge.records import Box, Detection, DetectionArrays

if TYPE_CHECKING:
    from ultralytics.engine.results import Results


def detections_of(results: "Results") -> tuple[Detection, ...]:
    """Return the boxes of ultralytics' `Results` as detections, most confident first.

    Args:
        results: the results of one image; boxes are in pixels of the model's input image.
    """
    boxes = results.boxes
    if boxes is None:
        return ()
    tracks = boxes.id.int().tolist() if boxes.id is not None else [None] * len(boxes)
    rows = zip(
        boxes.cls.int().tolist(), boxes.conf.tolist(), boxes.xyxy.tolist(), tracks, strict=True
    )
    detections = (
        Detection(class_id, results.names[class_id], confidence, Box(*xyxy), track)
        for class_id, confidence, xyxy, track in rows
    )
    return tuple(sorted(detections, key=lambda detection: -detection.confidence))


def classes_of(results: "Results", top_k: int = 5) -> tuple[Detection, ...]:
    """Return the classes of ultralytics' `Results`, most probable first; empty if it has none.

    Args:
        results: the results of one image.
        top_k: maximum number of classes, >= 1.
    """
    if results.probs is None:
        return ()
    shares = results.probs.data.tolist()
    best = sorted(range(len(shares)), key=shares.__getitem__, reverse=True)[:top_k]
    return tuple(Detection(index, results.names[index], shares[index]) for index in best)


def arrays_of(results: "Results") -> DetectionArrays | None:
    """Return the boxes as arrays, without an object per box; None if the results have no boxes.

    Raises:
        ValueError: a number is NaN.
    """
    boxes = results.boxes
    if boxes is None:
        return None
    rows = boxes.data.cpu().numpy() if hasattr(boxes.data, "cpu") else boxes.data
    scores = rows[:, -2].tolist()
    if scores != sorted(scores, reverse=True):  # trackers change the order
        rows = rows[(-rows[:, -2]).argsort(kind="stable")]
    return DetectionArrays(
        rows[:, :4],
        rows[:, -2],
        rows[:, -1],
        track_id=rows[:, -3] if boxes.is_track else None,
        names=results.names,
    )
