"""The contents of messages as Python columns, from protobuf messages and from Arrow arrays.

Two results are the same if their columns are equal. Not-a-numbers are equal to each other, zeros of
different signs are not.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from sightline.types.v1.prediction_pb2 import Detection

Columns = dict[str, list[Any]]
PTARS_READS = {"long tag", "long length", "another end", "deep group", "cut number"}
"""Kinds of bytes that ptars reads and protobuf refuses, as docs/reference/errors.md says."""
PROTOBUF_READS = {"number 0"}
"""Kinds of bytes that protobuf reads and ptars refuses, as docs/reference/errors.md says."""
MERGED = {"captured_at", "inference_time", "detections", "gaps"}
"""Columns in which protobuf merges a repeated message, while ptars keeps the last one."""
_LARGEST = 2**63 - 1
_PLAIN = (
    *("sequence", "image_id", "image_width", "image_height", "model_name", "model_version"),
    *("source", "cloud_reason", "trace_id"),
)
_POINT = ("x", "y", "confidence")
_SIDES = ("center_x", "center_y", "width", "height", "angle")
_EDGES = ("x_min", "y_min", "x_max", "y_max")


def by_protobuf(messages: Iterable[PredictionLogRequest]) -> Columns:
    """Return the predictions and gaps of the messages."""
    read = list(messages)
    predictions = [item for message in read for item in message.predictions]
    gaps = [item for message in read for item in message.gaps]
    return {
        **{name: [getattr(item, name) for item in predictions] for name in _PLAIN},
        "captured_at": [
            _us(p.captured_at) if p.HasField("captured_at") else None for p in predictions
        ],
        "inference_time": [
            _ns(p.inference_time) if p.HasField("inference_time") else None for p in predictions
        ],
        "defect_detected": [
            p.defect_detected if p.HasField("defect_detected") else None for p in predictions
        ],
        "labels": [sorted(item.labels.items()) for item in predictions],
        "detections": [list(map(_detection, item.detections)) for item in predictions],
        "gaps": [
            (
                gap.first_sequence,
                gap.last_sequence,
                gap.reason,
                _us(gap.declared_at) if gap.HasField("declared_at") else None,
            )
            for gap in gaps
        ],
    }


def by_arrow(predictions: pa.StructArray, gaps: pa.StructArray) -> Columns:
    """Return the predictions and gaps that were decoded."""
    labels, detections = predictions.field("labels"), predictions.field("detections")
    pairs = list(zip(labels.keys.to_pylist(), labels.items.to_pylist(), strict=True))
    declared = gaps.field("declared_at").view(pa.int64())
    columns = (gaps.field("first_sequence"), gaps.field("last_sequence"), gaps.field("reason"))
    return {
        **{name: predictions.field(name).to_pylist() for name in (*_PLAIN, "defect_detected")},
        "captured_at": predictions.field("captured_at").view(pa.int64()).to_pylist(),
        "inference_time": predictions.field("inference_time").view(pa.int64()).to_pylist(),
        "labels": list(map(sorted, _lists(labels.offsets, pairs))),
        "detections": list(_lists(detections.offsets, _detections(detections.values))),
        "gaps": list(zip(*(item.to_pylist() for item in (*columns, declared)), strict=True)),
    }


def _lists(offsets: pa.Array, values: list[Any]) -> Iterator[list[Any]]:
    return (values[start:end] for start, end in itertools.pairwise(offsets.to_pylist()))


def _detections(of: pa.StructArray) -> list[tuple[Any, ...]]:
    keypoints, masks = of.field("keypoints"), of.field("mask")
    points = list(zip(*(_bits(keypoints.values.field(name)) for name in _POINT), strict=True))
    return list(
        zip(
            of.field("class_id").to_pylist(),
            of.field("class_name").to_pylist(),
            _bits(of.field("confidence")),
            of.field("track_id").to_pylist(),
            _floats_or_none(of.field("box"), _EDGES),
            _floats_or_none(of.field("rotated_box"), _SIDES),
            _lists(keypoints.offsets, points),
            _masks(masks),
            strict=True,
        )
    )


def _floats_or_none(structs: pa.StructArray, names: Iterable[str]) -> Iterator[Any]:
    values = zip(*(_bits(structs.field(name)) for name in names), strict=True)
    present = structs.is_valid().to_pylist()
    return (value if there else None for value, there in zip(values, present, strict=True))


def _masks(masks: pa.StructArray) -> Iterator[Any]:
    polygons = masks.field("polygons")
    points = polygons.values.field("points")
    outlines = list(_lists(points.offsets, _bits(points.values)))
    columns = zip(
        *(masks.field(name).to_pylist() for name in ("width", "height", "rle")),
        _lists(polygons.offsets, outlines),
        strict=True,
    )
    present = masks.is_valid().to_pylist()
    return (mask if there else None for mask, there in zip(columns, present, strict=True))


def _detection(item: Detection) -> tuple[Any, ...]:
    box = _float_tuple(item.box, _EDGES) if item.HasField("box") else None
    rotated = _float_tuple(item.rotated_box, _SIDES) if item.HasField("rotated_box") else None
    points = [
        (bit(p.x), bit(p.y), bit(p.confidence) if p.HasField("confidence") else None)
        for p in item.keypoints
    ]
    mask = (
        (
            *(item.mask.width, item.mask.height, item.mask.rle),
            [list(map(bit, polygon.points)) for polygon in item.mask.polygons],
        )
        if item.HasField("mask")
        else None
    )
    track = item.track_id if item.HasField("track_id") else None
    return (
        *(item.class_id, item.class_name, bit(item.confidence), track, box),
        *(rotated, points, mask),
    )


def _float_tuple(message: Message, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(bit(getattr(message, name)) for name in names)


def _bits(floats: pa.Array) -> list[Any]:
    return [bit(value) for value in floats.to_pylist()]


def bit(value: float | None) -> float | str | None:
    """Return a value that is equal for not-a-numbers, and differs for zeros of different signs."""
    if value:
        return "nan" if math.isnan(value) else value
    return value if value is None or math.copysign(1.0, value) > 0 else "-0.0"


def _us(time: Timestamp) -> int:
    return _clamped(time.seconds * 10**6 + int(time.nanos / 1000))


def _ns(time: Duration) -> int:
    return _clamped(time.seconds * 10**9 + time.nanos)


def _clamped(value: int) -> int:
    return max(-_LARGEST - 1, min(_LARGEST, value))
