"""Results of any library, fitted into a record."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from edge.detect.result_columns import ResultColumns
from edge.records import Detection, Prediction
from servicekit.contract_bounds import MAX_DETECTIONS


def detections_of(columns: ResultColumns, left_out: Counter[str]) -> Sequence[Detection]:
    """Return the detections that a record can hold, and count the other parts by kind."""
    if not len(columns.boxes):
        return ()
    of_masks: Counter[str] = Counter()
    try:
        arrays = columns.arrays(of_masks)
    except Exception:  # noqa: BLE001 - such as NaN: log what can be logged
        return columns.rows(left_out)
    left_out.update(of_masks)
    return arrays


def fitting(
    record: Callable[[Sequence[Detection]], Prediction],
    detections: Sequence[Detection],
    left_out: Counter[str],
) -> Prediction:
    """Return a record with as many of the detections as it can hold, most confident first.

    A record that is too large loses its masks first, since the boxes say more.

    Args:
        record: makes the record with some detections.
        detections: all detections.
        left_out: the counter of what the record does not hold.

    Raises:
        ValueError: the record cannot be made without detections either.
    """
    if len(detections) > MAX_DETECTIONS:
        left_out["detection"] += len(detections) - MAX_DETECTIONS
        detections = detections[:MAX_DETECTIONS]
    try:
        return record(detections)
    except ValueError:
        if not detections:
            raise
        record(())  # raises if the detections are not the cause
    masked = sum(detection.mask is not None for detection in detections)
    if masked:
        left_out["mask"] += masked
        return fitting(record, [replace(one, mask=None) for one in detections], left_out)
    kept = len(detections) * 7 // 8
    left_out["detection"] += len(detections) - kept
    return fitting(record, detections[:kept], left_out)
