"""Builders of the Arrow tables that a store writes, from the decisions on messages.

Pure. Predictions stay columns throughout. Only rejections, gaps and new streams, which are rare,
are built row by row.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service.receive.checks import CLOUD_REASONS, SOURCES
from ingest_service.receive.detection_columns import detection_columns
from ingest_service.store.gap_reasons import gap_reason_name
from ingest_service.store.protocol import (
    GAPS,
    REJECTED,
    STREAMS,
    WATERMARKS,
    SpoolKey,
    StreamOpening,
    Watermark,
)
from servicekit.parsing import parse

_UNCHANGED = (
    "image_id",
    "image_width",
    "image_height",
    "model_name",
    "model_version",
    "captured_at",
    "defect_detected",
    "labels",
    "trace_id",
)


class GapRow(NamedTuple):
    """The new part of a gap."""

    spool: SpoolKey
    first_sequence: int
    last_sequence: int
    reason: int
    """Number of a GapReason, possibly of a newer contract."""
    declared_us: int | None


class RejectedRow(NamedTuple):
    """A prediction that broke a rule."""

    spool: SpoolKey
    sequence: int
    field: str
    reason: str
    original: str
    """JSON."""


def prediction_table(
    predictions: pa.StructArray, opening: NDArray[np.int64], openings: Sequence[StreamOpening]
) -> pa.Table:
    """Return the rows of the tables `predictions` and `prediction_shapes`, without `received_at`.

    Columns of rotated boxes, keypoints and masks are left out if no row has any.

    Args:
        predictions: the rows to store, from a decoder: times in us, durations in ns.
        opening: for each row, the index of its stream's opening.
        openings: the openings of the streams of the group.
    """
    owner = pa.array(opening.astype(np.int32))
    offsets = pa.array([o.clock_offset_seconds for o in openings], pa.float64())
    columns = {
        "device_id": _named(owner, [o.spool.device_id for o in openings]),
        "spool_id": _named(owner, [o.spool.spool_id for o in openings]),
        "clock_offset_seconds": offsets.take(owner),
        "sequence": predictions.field("sequence"),
        "source": _named(predictions.field("source"), SOURCES),
        "cloud_reason": _named(predictions.field("cloud_reason"), CLOUD_REASONS),
        "inference_seconds": _seconds(predictions.field("inference_time")),
        **{name: predictions.field(name) for name in _UNCHANGED},
        **detection_columns(predictions.field("detections")),
    }
    return pa.table(columns)


def rejected_table(rows: Iterable[RejectedRow]) -> pa.Table:
    """Return the rows of the table `rejected_predictions`, without `received_at`."""
    return pa.Table.from_pylist(
        [
            {
                **row.spool._asdict(),
                "sequence": row.sequence,
                "field": row.field,
                "reason": row.reason,
                "original": row.original,
            }
            for row in rows
        ],
        REJECTED,
    )


def gap_table(gaps: Iterable[GapRow]) -> pa.Table:
    """Return the rows of the table `gaps`, without `received_at`."""
    return pa.Table.from_pylist(
        [
            {
                **gap.spool._asdict(),
                "first_sequence": gap.first_sequence,
                "last_sequence": gap.last_sequence,
                "reason": gap_reason_name(gap.reason),
                "declared_at": gap.declared_us,
            }
            for gap in gaps
        ],
        GAPS,
    )


def stream_table(openings: Iterable[StreamOpening]) -> pa.Table:
    """Return the rows of the table `streams`, with the account of each."""
    return pa.Table.from_pylist(
        [
            {
                **opening.spool._asdict(),
                "opened_at": opening.opened_at,
                "device_time": opening.device_time,
                "device_monotonic_seconds": None
                if opening.device_monotonic is None
                else opening.device_monotonic.total_seconds(),
                "clock_offset_seconds": opening.clock_offset_seconds,
                "client": opening.client,
                "account": None if opening.account is None else opening.account.as_json(),
            }
            for opening in openings
        ],
        STREAMS,
    )


def watermark_table(
    before: Mapping[SpoolKey, Watermark],
    after: Mapping[SpoolKey, Watermark],
    duplicates: Mapping[SpoolKey, int],
) -> pa.Table:
    """Return the rows of the table `watermarks` that a group changes.

    Args:
        before: the watermarks before the group.
        after: the watermarks after it, of the spools with an accepted message.
        duplicates: numbers to add to the counts of duplicates.
    """
    return pa.Table.from_pylist(
        [
            {
                **spool._asdict(),
                "committed_through": watermark.through,
                "duplicates": duplicates.get(spool, 0),
                "first_digest": watermark.first_digest,
                "last_digest": watermark.last_digest,
                # Rarely changed, and more expensive to write than all other columns.
                "generations": None
                if watermark.generations == before[spool].generations
                else json.dumps(watermark.generations),
            }
            for spool, watermark in after.items()
        ],
        WATERMARKS,
    )


def originals(payload: bytes, indexes: Sequence[int], json_limit: int) -> Iterator[str]:
    """Yield these predictions of a message as JSON.

    Predictions that protobuf's JSON cannot represent (a timestamp in the year 100000), and those
    after the first `json_limit`, are kept as the received bytes, under `wire_base64`.
    """
    try:
        message = parse(PredictionLogRequest.FromString, payload)
    except DecodeError:  # protobuf refuses messages that ptars accepts: keep the whole message
        for index in indexes:
            yield json.dumps({"message_base64": _base64(payload), "prediction": index})
        return
    for count, index in enumerate(indexes):
        prediction = message.predictions[index]
        yield (_to_json(prediction) if count < json_limit else "") or _as_bytes(prediction)


def _named(numbers: pa.Array, names: Sequence[str | None]) -> pa.DictionaryArray:
    """Return the names of the numbers, without copying the numbers."""
    return pa.DictionaryArray.from_arrays(numbers, pa.array(names, pa.string()))


def _seconds(nanoseconds: pa.Array) -> pa.Array:
    return pc.divide(pc.cast(nanoseconds.view(pa.int64()), pa.float64(), safe=False), 1e9)


def _to_json(prediction: Prediction) -> str:
    """Return protobuf's JSON; empty: it cannot represent the prediction."""
    try:
        return json_format.MessageToJson(prediction, preserving_proto_field_name=True, indent=None)
    except (json_format.Error, ValueError, OverflowError):
        return ""


def _as_bytes(prediction: Prediction) -> str:
    return f'{{"wire_base64": "{_base64(prediction.SerializeToString())}"}}'  # needs no escaping


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
