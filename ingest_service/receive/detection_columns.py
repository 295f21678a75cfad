"""The columns of detections that a store writes, from the lists of a decoder.

Pure. No value is copied: the columns share the memory of the lists.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

_BOX = ("class_id", "class_name", "confidence", "box", "track_id")
_MASK = ("width", "height", "rle", "polygons")


def detection_columns(detections: pa.ListArray) -> Mapping[str, pa.ListArray]:
    """Return the column `detections`, and those of `rotated_boxes`, `keypoints` and `masks`.

    The last three have an entry for each detection, and null for predictions without any. Those
    without any value are left out.

    Args:
        detections: lists of `Detection` messages, not a slice of another array.
    """
    values = detections.values
    columns = {"detections": _lists(detections, _boxes(values))}
    rotated, points, masks = map(values.field, ("rotated_box", "keypoints", "mask"))
    if rotated.null_count < len(rotated):
        columns["rotated_boxes"] = _lists(detections, rotated, rotated.is_valid())
    if len(points.values):
        present = np.diff(points.offsets.to_numpy()) > 0
        columns["keypoints"] = _lists(detections, points, pa.array(present))
    if masks.null_count < len(masks):
        columns["masks"] = _lists(detections, _masks(masks), masks.is_valid())
    return columns


def _lists(
    lists: pa.ListArray, values: pa.Array, present: pa.BooleanArray | None = None
) -> pa.ListArray:
    """Return other values in the same lists; null: none of a list is present."""
    if present is None:
        return pa.ListArray.from_arrays(lists.offsets, values)
    before = np.concatenate(([0], np.cumsum(present.to_numpy(zero_copy_only=False))))
    empty = np.diff(before[lists.offsets.to_numpy()]) == 0
    return pa.ListArray.from_arrays(lists.offsets, values, mask=pa.array(empty))


def _boxes(detections: pa.StructArray) -> pa.StructArray:
    return pa.StructArray.from_arrays([detections.field(name) for name in _BOX], _BOX)


def _masks(masks: pa.StructArray) -> pa.StructArray:
    """Return masks whose polygons are lists of numbers, without a struct around each."""
    *plain, polygons = map(masks.field, _MASK)
    points = pa.ListArray.from_arrays(polygons.offsets, polygons.values.field("points"))
    return pa.StructArray.from_arrays([*plain, points], _MASK, mask=masks.is_null())
