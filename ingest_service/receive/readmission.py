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
import pyarrow.compute as pc
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service.receive import capture_window, rows
from ingest_service.receive.capture_window import CaptureWindow
from ingest_service.receive.checks import find_violations
from ingest_service.receive.decode import Decoder
from ingest_service.receive.undated import implausible, labelled, redated, undated
from ingest_service.store.duckdb.rejected import Rejected
from ingest_service.store.retention_clock import to_time

UNREADABLE = "ORIGINAL_UNREADABLE"
"""Reason of a row that stays rejected because its original cannot be read."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A correction of capture times that are implausible; at most one of its fields is set."""

    add_seconds: float = 0.0
    """Seconds to add to a capture time outside of the plausible window; 0: none."""
    server_time: bool = False
    """Use the time of the rejection where the capture time is missing or too early."""

    def apply(
        self, predictions: pa.StructArray, window: CaptureWindow, received: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return a mask of the predictions to correct, and the time of each, us since 1970.

        Args:
            predictions: the predictions from a decoder.
            window: their plausible capture times.
            received: their times of rejection, us since 1970.
        """
        if self.server_time:
            return undated(predictions, window), received
        captured = predictions.field("captured_at").view(pa.int64())
        times: NDArray[np.int64] = pc.fill_null(captured, 0).to_numpy()
        if not self.add_seconds:
            return np.zeros(len(times), np.bool_), times
        return implausible(predictions, window), times + round(self.add_seconds * 1e6)


NO_CORRECTION = Correction()


@dataclass(frozen=True, slots=True)
class ReadmissionBatch:
    """The result of a check of rejected predictions."""

    predictions: pa.Table
    """Predictions that keep every rule now, as rows of `predictions` without `received_at`."""
    last: Rejected
    """The last prediction that was checked."""
    lags: Mapping[str, tuple[float, float]]
    """By device: smallest and largest time from capture to rejection by the two clocks, s; of the
    predictions that have a capture time."""
    kept: Counter[str] = field(default_factory=Counter)
    """Number of predictions that stay rejected, by reason."""


def recheck(
    rejected: Sequence[Rejected],
    decoder: Decoder,
    now: datetime,
    correction: Correction = NO_CORRECTION,
) -> ReadmissionBatch:
    """Check rejected predictions against the rules again.

    Capture times are checked by the device's clock if its stream had sent that clock, else by the
    server's clock now.

    Args:
        rejected: at least one prediction.
        decoder: decodes the originals.
        now: the server's wall clock, UTC.
        correction: of capture times, before the check. A corrected prediction has the device's
            time in the label `undated.DEVICE_TIME_LABEL`.
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
    found = [rejected[number] for number in chosen]
    return _checked(found, taken, kept, now, rejected[-1], correction)


def _checked(
    rejected: Sequence[Rejected],
    predictions: pa.StructArray,
    kept: Counter[str],
    now: datetime,
    last: Rejected,
    correction: Correction,
) -> ReadmissionBatch:
    openings = [prediction.opening for prediction in rejected]
    windows = [_window(prediction, now) for prediction in rejected]
    owner = np.arange(len(rejected), dtype=np.int64)
    good = np.ones(len(rejected), dtype=np.bool_)
    window = capture_window.for_each(windows, owner)
    received = np.array([prediction.received_us for prediction in rejected], np.int64)
    wrong, times = correction.apply(predictions, window, received)
    dated = redated(predictions, wrong, times)
    for row, violation in find_violations(dated, window).items():
        good[row] = False
        kept[violation.reason] += 1
    table = rows.prediction_table(
        labelled(dated, wrong, predictions).filter(pa.array(good)), owner[good], openings
    )
    return ReadmissionBatch(table, last, _lags(rejected, predictions), kept)


def _lags(
    rejected: Sequence[Rejected], predictions: pa.StructArray
) -> dict[str, tuple[float, float]]:
    lags: dict[str, tuple[float, float]] = {}
    captured = predictions.field("captured_at").view(pa.int64()).to_pylist()
    for prediction, time in zip(rejected, captured, strict=True):
        if time is not None:
            lag = (prediction.received_us - time) / 1e6
            low, high = lags.get(prediction.device_id, (lag, lag))
            lags[prediction.device_id] = (min(low, lag), max(high, lag))
    return lags


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
