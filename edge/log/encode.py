"""Encoder of records as `sightline.types.v1.Prediction`, without protobuf objects in between.

The spool stores each prediction in its wire format, so that it is encoded only once and sent by
joining bytes. `edge.wire` encodes single fields. `bench/encode.py` compares the speed with that of
protobuf's own runtime (upb).
"""

import math
import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat

from edge.log.encode_geometry import geometry_fields, geometry_rows, has_geometry
from edge.records import CloudReason, Detection, DetectionArrays, Prediction, Source
from edge.wire import integer, nested, text, timestamp, varint

_CLOUD = Source.CLOUD
_CLOUD_REASONS = {
    CloudReason.REQUESTED: 1,
    CloudReason.DEVICE_FAILED: 2,
    CloudReason.DEVICE_TIMEOUT: 3,
    CloudReason.DEVICE_UNSURE: 4,
    CloudReason.DEVICE_SLOW: 5,
    CloudReason.NO_DEVICE_MODEL: 6,
}
_CONFIDENCE = struct.Struct("<Bf")
_CONFIDENCE_AND_BOX = struct.Struct("<BfBBBfBfBfBf")
_MAX_FLOAT32 = 3.4028234663852886e38
_CACHED_TEXT = 256  # the server rejects longer texts, so caching them is not worthwhile


def prediction_body(prediction: Prediction, now: float) -> bytes:
    """Return a `sightline.types.v1.Prediction` without its sequence.

    Args:
        prediction: the record.
        now: Unix seconds, used if the record has no `captured_at`.
    """
    captured_at = now if prediction.captured_at is None else prediction.captured_at
    parts = [
        text(b"\x12", prediction.image_id),
        _origin(prediction),
        nested(b"\x4a", timestamp(captured_at)),
    ]
    if prediction.inference_seconds is not None:
        parts.append(nested(b"\x52", _duration(prediction.inference_seconds)))
    detections = prediction.detections
    if isinstance(detections, DetectionArrays):
        parts += _rows(detections)
    else:
        parts += map(_detection, detections)
    if prediction.defect_detected is not None:
        parts.append(b"\x60\x01" if prediction.defect_detected else b"\x60\x00")
    for key, value in prediction.labels.items():
        parts.append(nested(b"\x6a", text(b"\x0a", key) + text(b"\x12", value)))
    parts.append(text(b"\x72", prediction.trace_id))
    return b"".join(parts)


def _duration(seconds: float) -> bytes:
    whole, nanos = divmod(round(abs(seconds) * 1e9), 10**9)
    sign = -1 if seconds < 0 else 1  # nanoseconds have the same sign as the seconds
    return integer(b"\x08", sign * whole) + integer(b"\x10", sign * nanos)


def _origin(prediction: Prediction) -> bytes:
    name, version = prediction.model_name, prediction.model_version
    encode: Callable[..., bytes] = _origin_fields
    if len(name) + len(version) > _CACHED_TEXT:
        encode = _origin_fields.__wrapped__
    width, height = prediction.image_width, prediction.image_height
    # A bool, since hashing an enum member would take longer than the rest of the call.
    is_cloud = prediction.source is _CLOUD
    return encode(width, height, name, version, is_cloud, prediction.cloud_reason)


@lru_cache(maxsize=64)
def _origin_fields(
    width: int, height: int, name: str, version: str, is_cloud: bool, reason: CloudReason | None
) -> bytes:
    """Return the fields that usually are the same for all images of a device."""
    fields = [
        integer(b"\x18", width),
        integer(b"\x20", height),
        text(b"\x2a", name),
        text(b"\x32", version),
        b"\x38\x02" if is_cloud else b"\x38\x01",
        integer(b"\x40", _CLOUD_REASONS[reason]) if reason else b"",
    ]
    return b"".join(fields)


def _detection(detection: Detection) -> bytes:
    """Return an entry of `Prediction.detections` with its tag."""
    box = detection.box
    if (
        box is None
        or detection.mask is not None
        or detection.keypoints
        or detection.rotated_box is not None
    ):
        return _any_detection(detection)
    x_min, y_min, x_max, y_max = box.x_min, box.y_min, box.x_max, box.y_max
    track = b"" if detection.track_id is None else _track(detection.track_id)
    start = _start(detection.class_id, detection.class_name, len(track))
    try:
        return start + _confidence_and_box(detection.confidence, x_min, y_min, x_max, y_max) + track
    except OverflowError:
        return _any_detection(detection)


def _rows(detections: DetectionArrays) -> list[bytes]:
    """Return the entries of arrays, whose 32-bit floats cannot overflow."""
    boxes = iter(detections.boxes)
    tracks = repeat(b"") if detections.track_ids is None else map(_track, detections.track_ids)
    columns = zip(
        *(
            detections.class_ids,
            detections.class_names,
            detections.confidences,
            boxes,
            boxes,
            boxes,
            boxes,
            tracks,
        ),
        strict=False,  # `repeat` has no length
    )
    if has_geometry(detections):
        return [
            nested(
                b"\x5a",
                _class_fields(class_id, name)
                + _confidence_and_box(confidence, x_min, y_min, x_max, y_max)
                + track
                + geometry,
            )
            for (class_id, name, confidence, x_min, y_min, x_max, y_max, track), geometry in zip(
                columns, geometry_rows(detections), strict=True
            )
        ]
    return [
        _start(class_id, name, len(track))
        + _confidence_and_box(confidence, x_min, y_min, x_max, y_max)
        + track
        for class_id, name, confidence, x_min, y_min, x_max, y_max, track in columns
    ]


def _track(track_id: int) -> bytes:
    return b"\x28" + varint(track_id)


def _start(class_id: int, name: str, rest: int) -> bytes:
    if len(name) <= _CACHED_TEXT:
        return _cached_start(class_id, name, rest)
    return _cached_start.__wrapped__(class_id, name, rest)


@lru_cache(maxsize=1024)
def _cached_start(class_id: int, name: str, rest: int) -> bytes:
    """Return a detection up to its confidence and box, after which `rest` bytes follow."""
    fields = _class_fields(class_id, name)
    return b"\x5a" + varint(len(fields) + _CONFIDENCE_AND_BOX.size + rest) + fields


def _class_fields(class_id: int, name: str) -> bytes:
    return integer(b"\x08", class_id) + text(b"\x12", name)


def _any_detection(detection: Detection) -> bytes:
    fields = [
        _class_fields(detection.class_id, detection.class_name),
        _CONFIDENCE.pack(0x1D, _as_float32(detection.confidence)),
    ]
    if detection.box is not None:
        box = (getattr(detection.box, name) for name in ("x_min", "y_min", "x_max", "y_max"))
        whole = _confidence_and_box(0.0, *map(_as_float32, box))
        fields.append(whole[_CONFIDENCE.size :])
    if detection.track_id is not None:
        fields.append(_track(detection.track_id))
    fields.append(geometry_fields(detection))
    return nested(b"\x5a", b"".join(fields))


def _confidence_and_box(
    confidence: float, x_min: float, y_min: float, x_max: float, y_max: float
) -> bytes:
    return _CONFIDENCE_AND_BOX.pack(
        0x1D, confidence, 0x22, 20, 0x0D, x_min, 0x15, y_min, 0x1D, x_max, 0x25, y_max
    )


def _as_float32(number: float) -> float:
    """Return infinity, as protobuf does, for a number outside the range of 32-bit floats."""
    return math.copysign(math.inf, number) if abs(number) > _MAX_FLOAT32 else number
