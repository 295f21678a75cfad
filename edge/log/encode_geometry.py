"""Encoders of rotated boxes, keypoints and masks: the fields 6 to 8 of the contract's `Detection`.

No Python object is created for a single point of an array.
"""

from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby

from edge.records import Detection, DetectionArrays, Keypoint, Mask, RotatedBox
from edge.wire import float_messages, integer, nested, packed_floats, text

_ROTATED_BOX, _KEYPOINTS, _MASK = b"\x32", b"\x3a", b"\x42"


def has_geometry(detections: DetectionArrays) -> bool:
    """Return True if the arrays have more than boxes."""
    return not (
        detections.rotated_boxes is None
        and detections.keypoints is None
        and detections.masks is None
    )


def geometry_fields(detection: Detection) -> bytes:
    """Return the rotated box, the keypoints and the mask of a detection."""
    parts = []
    if detection.rotated_box is not None:
        parts.append(_rotated_box(detection.rotated_box))
    if detection.keypoints:
        parts.append(_keypoints(detection.keypoints))
    if detection.mask is not None:
        parts.append(_mask(detection.mask))
    return b"".join(parts)


def geometry_rows(detections: DetectionArrays) -> Iterator[bytes]:
    """Yield the rotated box, the keypoints and the mask of each row."""
    count, nothing = len(detections), [b""] * len(detections)
    rotated, points, masks = detections.rotated_boxes, detections.keypoints, detections.masks
    per_row, width = detections.keypoint_shape
    columns = (
        nothing if rotated is None else _split(float_messages(_ROTATED_BOX, 5, rotated), count),
        nothing
        if points is None or not per_row
        else _split(float_messages(_KEYPOINTS, width, points), count),
        nothing if masks is None else (b"" if mask is None else _mask(mask) for mask in masks),
    )
    return map(b"".join, zip(*columns, strict=True))


def _split(entries: bytes, count: int) -> list[bytes]:
    """Return the entries in `count` parts of equal size."""
    size = len(entries) // max(count, 1)
    return [entries[at * size : (at + 1) * size] for at in range(count)]


def _rotated_box(box: RotatedBox) -> bytes:
    sides = (box.center_x, box.center_y, box.width, box.height, box.angle)
    return float_messages(_ROTATED_BOX, 5, array("f", sides))


def _keypoints(points: Sequence[Keypoint]) -> bytes:
    parts = []
    for is_bare, run in groupby(points, lambda point: point.confidence is None):
        numbers = array("f")
        for point in run:
            numbers.extend((point.x, point.y))
            if point.confidence is not None:
                numbers.append(point.confidence)
        parts.append(float_messages(_KEYPOINTS, 2 if is_bare else 3, numbers))
    return b"".join(parts)


def _mask(mask: Mask) -> bytes:
    fields = [integer(b"\x08", mask.width), integer(b"\x10", mask.height)]
    return nested(
        _MASK, b"".join((*fields, text(b"\x1a", mask.rle), *map(_polygon, mask.polygons)))
    )


def _polygon(points: "array[float]") -> bytes:
    return nested(b"\x22", packed_floats(b"\x0a", points))
