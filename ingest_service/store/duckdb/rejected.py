"""Queries for rejected predictions, and their deletion once they are accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import duckdb
import pyarrow as pa

from ingest_service.store.protocol import SpoolKey, StreamOpening
from ingest_service.store.retention_clock import to_time

REASONS = ("CAPTURED_AT_IN_FUTURE", "CAPTURED_AT_TOO_EARLY")
"""Rules that depend on clocks, so that a breach can be the server's fault."""
BATCH = 5000
"""Maximum number of rows that one transaction moves."""
BATCH_BYTES = 32 * 1024 * 1024
"""Approximate maximum size of the originals of a batch, bytes; one row always fits."""

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
class RejectedFilter:
    """A filter of rejected predictions; all its conditions must hold."""

    reasons: tuple[str, ...] = REASONS
    """Rules that the predictions broke."""
    device_ids: tuple[str, ...] = ()
    """Empty: every device."""
    since: datetime | None = None
    """Rejected at or after this time, by `received_at`, UTC."""
    until: datetime | None = None
    """Rejected before this time."""


class Rejected(NamedTuple):
    """A rejected prediction and the stream on which it was sent."""

    received_us: int
    device_id: str
    spool_id: str
    sequence: int
    original: str
    """JSON, as `rows.originals` writes it."""
    opened_us: int | None
    """None: the row of the stream was deleted."""
    device_us: int | None
    """The device's clock when the stream was opened; None: the device did not send it."""
    client: str

    @property
    def opening(self) -> StreamOpening:
        """The opening of its stream, as far as it is known."""
        return StreamOpening(
            SpoolKey(self.device_id, self.spool_id),
            to_time(self.received_us if self.opened_us is None else self.opened_us),
            None if self.device_us is None else to_time(self.device_us),
            None,
            self.client,
        )


def find_rejected(
    cursor: duckdb.DuckDBPyConnection, filter_: RejectedFilter, after: Rejected | None
) -> Sequence[Rejected]:
    """Return the next batch of rejected predictions, oldest first."""
    clauses = ["list_contains($reasons, reason)"]
    values: dict[str, object] = {"reasons": list(filter_.reasons)}
    if filter_.device_ids:
        clauses.append("list_contains($devices, device_id)")
        values["devices"] = list(filter_.device_ids)
    for name, comparison, time in (("since", ">=", filter_.since), ("until", "<", filter_.until)):
        if time is not None:
            clauses.append(f"received_at {comparison} ${name}")
            values[name] = time
    if after is not None:
        clauses.append(_AFTER)
        values |= {"us": after.received_us, "device_id": after.device_id}
        values |= {"spool_id": after.spool_id, "sequence": after.sequence}
    rows = cursor.execute(_FIND.format(where=" AND ".join(clauses)), values).fetchall()
    return [Rejected(*row) for row in rows]


def delete_rejected(cursor: duckdb.DuckDBPyConnection, predictions: pa.Table) -> None:
    """Delete the rejected rows of these predictions, in the open transaction.

    Raises:
        RuntimeError: there is not exactly one rejected row for each prediction.
    """
    cursor.register("readmitted", predictions.select(["device_id", "spool_id", "sequence"]))
    ((count,),) = cursor.execute(_DELETE).fetchall()
    cursor.unregister("readmitted")
    if count != predictions.num_rows:
        raise RuntimeError(f"{count} rejected rows for {predictions.num_rows} predictions")
