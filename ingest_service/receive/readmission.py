"""Readmission of rejected predictions that keep every rule now.

It is meant for predictions that were rejected by mistake, for example by a server whose clock was
wrong. Rows are moved in batches. One transaction inserts them as predictions and deletes them as
rejected, so the bookkeeping of their spools stays balanced, and a killed run can be repeated.
"""

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service.receive import capture_window, rows
from ingest_service.receive.checks import find_violations
from ingest_service.receive.decode import Decoder
from ingest_service.store.duckdb.rejected import Rejected
from ingest_service.store.retention_clock import to_time

UNREADABLE = "ORIGINAL_UNREADABLE"
"""Reason of a row that stays rejected because its original cannot be read."""


@dataclass(frozen=True, slots=True)
class ReadmissionBatch:
    """The result of a check of rejected predictions."""

    predictions: pa.Table
    """Predictions that keep every rule now, as rows of `predictions` without `received_at`."""
    last: Rejected
    """The last prediction that was checked."""
    kept: Counter[str] = field(default_factory=Counter)
    """Number of predictions that stay rejected, by reason."""


def recheck(rejected: Sequence[Rejected], decoder: Decoder, now: datetime) -> ReadmissionBatch:
    """Check rejected predictions against the rules again.

    Capture times are checked by the device's clock if its stream had sent that clock, else by the
    server's clock now.

    Args:
        rejected: at least one prediction.
        decoder: decodes the originals.
        now: the server's wall clock, UTC.
    """
    payloads, places = _payloads(rejected)
    kept: Counter[str] = Counter()
    decoded = decoder.decode(payloads)
    predictions = decoded.batch.column("predictions")
    chosen, index = [], []
    starts = predictions.offsets.to_numpy()
    sequences = predictions.values.field("sequence").to_numpy(zero_copy_only=False)
    for number, place in enumerate(places):
        at = None if place is None else _row(starts, place)
        if at is None or sequences[at] != rejected[number].sequence:
            kept[UNREADABLE] += 1
        else:
            chosen.append(number)
            index.append(at)
    taken = predictions.values.take(pa.array(index, pa.int64()))
    return _checked([rejected[number] for number in chosen], taken, kept, now, rejected[-1])


def _checked(
    rejected: Sequence[Rejected],
    predictions: pa.StructArray,
    kept: Counter[str],
    now: datetime,
    last: Rejected,
) -> ReadmissionBatch:
    openings = [prediction.opening for prediction in rejected]
    windows = [_window(prediction, now) for prediction in rejected]
    owner = np.arange(len(rejected), dtype=np.int64)
    good = np.ones(len(rejected), dtype=np.bool_)
    window = capture_window.for_each(windows, owner)
    for row, violation in find_violations(predictions, window).items():
        good[row] = False
        kept[violation.reason] += 1
    table = rows.prediction_table(predictions.filter(pa.array(good)), owner[good], openings)
    return ReadmissionBatch(table, last, kept)


def _window(rejected: Rejected, now: datetime) -> capture_window.CaptureWindow:
    opening = rejected.opening
    if opening.device_time is None:
        return capture_window.by_server(now)
    elapsed = to_time(rejected.received_us) - opening.opened_at
    return capture_window.by_device(opening.device_time, max(elapsed, timedelta()))


def _row(starts: NDArray[np.int32], place: tuple[int, int]) -> int | None:
    """Return the row of the n-th prediction of a message, from 0; None: there is none."""
    message, number = place
    row = int(starts[message]) + number
    return row if number >= 0 and row < starts[message + 1] else None


def _payloads(
    rejected: Sequence[Rejected],
) -> tuple[list[bytes], list[tuple[int, int] | None]]:
    """Return messages with the originals, and for each original its message and index in it.

    None stands for an original that cannot be read.
    """
    payloads: dict[bytes, int] = {}
    places: list[tuple[int, int] | None] = []
    for prediction in rejected:
        try:
            payload, number = _payload(json.loads(prediction.original))
        except (ValueError, TypeError, KeyError, DecodeError, json_format.Error, binascii.Error):
            places.append(None)
        else:
            places.append((payloads.setdefault(payload, len(payloads)), number))
    return list(payloads), places


def _payload(original: Mapping[str, object]) -> tuple[bytes, int]:
    """Return a message that contains an original, and the index of the original in it."""
    match original:
        case {"message_base64": str(text), "prediction": int(number)}:
            return base64.b64decode(text, validate=True), number
        case {"wire_base64": str(text)}:
            prediction = Prediction.FromString(base64.b64decode(text, validate=True))
        case _:
            prediction = json_format.ParseDict(dict(original), Prediction())
    return PredictionLogRequest(predictions=[prediction]).SerializeToString(), 0
