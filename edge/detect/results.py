"""What ultralytics found, as records; ultralytics itself is not imported."""

from typing import TYPE_CHECKING

from edge.records import Box, Detection

if TYPE_CHECKING:
    from ultralytics.engine.results import Results


def detections_of(results: "Results") -> tuple[Detection, ...]:
    """Returns the boxes of ultralytics' `Results` as detections, most confident first.

    Args:
        results: of one picture; boxes in pixels of the picture that the model was given.
    """
    boxes = results.boxes
    if boxes is None:
        return ()
    tracks = boxes.id.int().tolist() if boxes.id is not None else [None] * len(boxes)
    rows = zip(
        boxes.cls.int().tolist(), boxes.conf.tolist(), boxes.xyxy.tolist(), tracks, strict=True
    )
    found = (
        Detection(class_id, results.names[class_id], confidence, Box(*xyxy), track)
        for class_id, confidence, xyxy, track in rows
    )
    return tuple(sorted(found, key=lambda detection: -detection.confidence))
