"""Puts rejected predictions that keep every rule now back among the predictions, each once.

For rows that were rejected for no fault of theirs, such as by a server whose clock was wrong. Rows
move in batches, each in one transaction: they are inserted as predictions and deleted as rejected,
so the books of their spools stay balanced, and a run that is killed can be repeated.
"""

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service import capture_window, rows
from ingest_service.checks import find_violations
from ingest_service.decode import Decoder
from ingest_service.retention_clock import to_time
from ingest_service.store import Opening, Spool

REASONS = ("CAPTURED_AT_IN_FUTURE", "CAPTURED_AT_TOO_EARLY")
"""Rules whose breach can be the server's fault: they go by clocks."""
UNREADABLE = "ORIGINAL_UNREADABLE"
"""Why a row stays whose original cannot be read."""
BATCH = 5000
"""Rows that one transaction moves, at most."""
BATCH_BYTES = 32 * 1024 * 1024
"""Size of the originals of a batch, about; one row always fits."""

_KEY = "received_at, device_id, spool_id, sequence"
_FIND = f"""
    WITH named AS (
        SELECT received_at, device_id, spool_id, sequence, original::VARCHAR AS original
        FROM rejected_predictions WHERE {{where}}
        ORDER BY {_KEY} LIMIT {BATCH}
    ), chosen AS MATERIALIZED (
        SELECT * FROM named
        QUALIFY sum(strlen(original)) OVER (ORDER BY {_KEY} ROWS UNBOUNDED PRECEDING)
            - strlen(original) < {BATCH_BYTES}
    ), opened AS (
        SELECT s.* FROM streams AS s
        SEMI JOIN (SELECT DISTINCT device_id, spool_id FROM chosen) USING (device_id, spool_id)
    )
    SELECT epoch_us(c.received_at), c.device_id, c.spool_id, c.sequence, c.original,
        epoch_us(s.opened_at), epoch_us(s.device_time), coalesce(s.client, '')
    FROM chosen AS c ASOF LEFT JOIN opened AS s ON c.device_id = s.device_id
        AND c.spool_id = s.spool_id AND c.received_at >= s.opened_at
    ORDER BY c.received_at, c.device_id, c.spool_id, c.sequence
"""
_AFTER = f"({_KEY}) > (make_timestamptz($us), $device_id, $spool_id, $sequence)"
_DELETE = """
    DELETE FROM rejected_predictions AS r USING readmitted AS n
    WHERE r.device_id = n.device_id AND r.spool_id = n.spool_id AND r.sequence = n.sequence
"""


@dataclass(frozen=True, slots=True)
class Which:
    """Which rejected predictions are looked at; all conditions hold."""

    reasons: tuple[str, ...] = REASONS
    """Rules that they broke."""
    device_ids: tuple[str, ...] = ()
    """Empty: of every device."""
    since: datetime | None = None
    """Rejected at or after it, by `received_at`, UTC."""
    until: datetime | None = None
    """Rejected before it."""


class Rejected(NamedTuple):
    """A rejected prediction, and the stream that it came on."""

    received_us: int
    device_id: str
    spool_id: str
    sequence: int
    original: str
    """JSON, as `rows.originals` writes it."""
    opened_us: int | None
    """None: the stream is not known any more."""
    device_us: int | None
    """The device's clock then; None: it did not say."""
    client: str

    @property
    def opening(self) -> Opening:
        """The stream that it came on, as far as that is known."""
        return Opening(
            Spool(self.device_id, self.spool_id),
            to_time(self.received_us if self.opened_us is None else self.opened_us),
            None if self.device_us is None else to_time(self.device_us),
            None,
            self.client,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What becomes of a batch of rejected predictions."""

    predictions: pa.Table
    """Those that keep every rule now, as rows of `predictions` without `received_at`."""
    last: Rejected
    """The last that was looked at."""
    kept: Counter[str] = field(default_factory=Counter)
    """Those that stay rejected, by why."""


def find(
    cursor: duckdb.DuckDBPyConnection, which: Which, after: Rejected | None
) -> Sequence[Rejected]:
    """Return the next rejected predictions, in the order in which they were rejected."""
    clauses = ["list_contains($reasons, reason)"]
    given: dict[str, object] = {"reasons": list(which.reasons)}
    if which.device_ids:
        clauses.append("list_contains($devices, device_id)")
        given["devices"] = list(which.device_ids)
    for name, comparison, time in (("since", ">=", which.since), ("until", "<", which.until)):
        if time is not None:
            clauses.append(f"received_at {comparison} ${name}")
            given[name] = time
    if after is not None:
        clauses.append(_AFTER)
        given |= {"us": after.received_us, "device_id": after.device_id}
        given |= {"spool_id": after.spool_id, "sequence": after.sequence}
    found = cursor.execute(_FIND.format(where=" AND ".join(clauses)), given).fetchall()
    return [Rejected(*row) for row in found]


def move(cursor: duckdb.DuckDBPyConnection, predictions: pa.Table) -> None:
    """Delete what was inserted as predictions, in the transaction that is open.

    Raises:
        RuntimeError: not each of them was there once.
    """
    cursor.register("readmitted", predictions.select(["device_id", "spool_id", "sequence"]))
    ((count,),) = cursor.execute(_DELETE).fetchall()
    cursor.unregister("readmitted")
    if count != predictions.num_rows:
        raise RuntimeError(f"{count} rejected rows for {predictions.num_rows} predictions")


def weigh(found: Sequence[Rejected], decoder: Decoder, now: datetime) -> Batch:
    """Return which of the rejected predictions keep every rule now.

    Their capture times are held against the device's clock where its stream says what that showed,
    else against the server's clock now.

    Args:
        found: at least one.
        decoder: reads the originals.
        now: the server's wall clock, UTC.
    """
    payloads, places = _payloads(found)
    kept: Counter[str] = Counter()
    decoded = decoder.decode(payloads)
    predictions = decoded.batch.column("predictions")
    chosen, index = [], []
    starts = predictions.offsets.to_numpy()
    sequences = predictions.values.field("sequence").to_numpy(zero_copy_only=False)
    for number, place in enumerate(places):
        at = None if place is None else _row(starts, place)
        if at is None or sequences[at] != found[number].sequence:
            kept[UNREADABLE] += 1
        else:
            chosen.append(number)
            index.append(at)
    taken = predictions.values.take(pa.array(index, pa.int64()))
    return _checked([found[number] for number in chosen], taken, kept, now, found[-1])


def _checked(
    found: Sequence[Rejected],
    predictions: pa.StructArray,
    kept: Counter[str],
    now: datetime,
    last: Rejected,
) -> Batch:
    openings = [each.opening for each in found]
    windows = [_window(each, now) for each in found]
    owner = np.arange(len(found), dtype=np.int64)
    good = np.ones(len(found), dtype=np.bool_)
    window = capture_window.for_each(windows, owner)
    for row, violation in find_violations(predictions, window).items():
        good[row] = False
        kept[violation.reason] += 1
    table = rows.prediction_table(predictions.filter(pa.array(good)), owner[good], openings)
    return Batch(table, last, kept)


def _window(rejected: Rejected, now: datetime) -> capture_window.Window:
    opening = rejected.opening
    if opening.device_time is None:
        return capture_window.by_server(now)
    elapsed = to_time(rejected.received_us) - opening.opened_at
    return capture_window.by_device(opening.device_time, max(elapsed, timedelta()))


def _row(starts: NDArray[np.int32], place: tuple[int, int]) -> int | None:
    """Return the row of the n-th prediction of a message; None: it has no such."""
    message, number = place
    row = int(starts[message]) + number
    return row if number >= 0 and row < starts[message + 1] else None


def _payloads(
    found: Sequence[Rejected],
) -> tuple[list[bytes], list[tuple[int, int] | None]]:
    """Return messages that hold the originals, and for each original its message and place in it.

    None stands for an original that cannot be read.
    """
    payloads: dict[bytes, int] = {}
    places: list[tuple[int, int] | None] = []
    for each in found:
        try:
            payload, number = _payload(json.loads(each.original))
        except (ValueError, TypeError, KeyError, DecodeError, json_format.Error, binascii.Error):
            places.append(None)
        else:
            places.append((payloads.setdefault(payload, len(payloads)), number))
    return list(payloads), places


def _payload(original: Mapping[str, object]) -> tuple[bytes, int]:
    """Return a message that holds an original, and its place in it."""
    match original:
        case {"message_base64": str(text), "prediction": int(number)}:
            return base64.b64decode(text, validate=True), number
        case {"wire_base64": str(text)}:
            prediction = Prediction.FromString(base64.b64decode(text, validate=True))
        case _:
            prediction = json_format.ParseDict(dict(original), Prediction())
    return PredictionLogRequest(predictions=[prediction]).SerializeToString(), 0
