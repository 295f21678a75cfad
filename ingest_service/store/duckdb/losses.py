"""Queries for gaps, for rejected predictions, and for what became of one sequence."""

from collections.abc import Sequence
from typing import Any

from ingest_service.store.duckdb.filters import as_names, names_in
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.record_types import (
    Absence,
    GapRecord,
    LossFilter,
    Place,
    RejectedRecord,
    StoredAt,
)

_GAP = """
    epoch_us(received_at), device_id, spool_id, first_sequence, last_sequence, reason,
    epoch_us(declared_at)
"""
_GAPS = f"""
    SELECT {_GAP} FROM gaps WHERE {{where}}
    ORDER BY received_at DESC, device_id DESC, spool_id DESC, first_sequence DESC LIMIT $size
"""
_REJECTION = """
    epoch_us(received_at), device_id, spool_id, sequence, field, reason, original::VARCHAR
"""
_REJECTIONS = f"""
    SELECT {_REJECTION} FROM rejected_predictions WHERE {{where}}
    ORDER BY received_at DESC, device_id DESC, spool_id DESC, sequence DESC LIMIT $size
"""
_CUT = """
    SELECT epoch_us(min(received_at)) FROM (
        SELECT received_at FROM rejected_predictions WHERE {where}
        ORDER BY received_at DESC LIMIT $size
    )
"""
_AFTER = """
    received_at <= make_timestamptz({us}) AND (received_at, device_id, spool_id, {sequence})
        < (make_timestamptz({us}), $after_device, $after_spool, $after_sequence)
"""
_SPOOL = "device_id = $device_id AND spool_id = $spool_id"
_FIND = f"""
    SELECT
        (SELECT committed_through FROM watermarks WHERE {_SPOOL}),
        (
            SELECT epoch_us(received_at) FROM predictions
            WHERE {_SPOOL} AND sequence = $sequence LIMIT 1
        ),
        (SELECT sum(predictions + rejected) FROM expired WHERE {_SPOOL})
"""


def read_gaps(
    run: RunQuery, filter_: LossFilter, size: int, after: Place | None
) -> list[GapRecord]:
    """Return at most `size` gaps, newest commit first."""
    where, values = _where(filter_, after, "first_sequence")
    return [GapRecord(*row) for row in run(_GAPS.format(where=where), {**values, "size": size})]


def read_rejections(
    run: RunQuery, filter_: LossFilter, size: int, after: Place | None
) -> list[RejectedRecord]:
    """Return at most `size` rejected predictions, newest commit first."""
    where, values = _where(filter_, after, "sequence")
    values["size"] = size
    # Originals are large: they are read only from this commit on.
    ((oldest,),) = run(_CUT.format(where=where), values)
    if oldest is None:
        return []
    where = f"{where} AND received_at >= make_timestamptz({oldest})"
    return [RejectedRecord(*row) for row in run(_REJECTIONS.format(where=where), values)]


def find_sequence(
    run: RunQuery, device_id: str, spool_id: str, sequence: int
) -> StoredAt | RejectedRecord | GapRecord | Absence:
    """Return what became of a sequence; all queries must see one snapshot."""
    spool = {"device_id": device_id, "spool_id": spool_id}
    ((through, received_us, expired),) = run(_FIND, {**spool, "sequence": sequence})
    if received_us is not None:
        return StoredAt(received_us)
    if through is None or sequence > through:
        return Absence.NOT_COMMITTED
    rejected = f"SELECT {_REJECTION} FROM rejected_predictions WHERE {_SPOOL} AND sequence = $at"
    for row in run(rejected, {**spool, "at": sequence}):
        return RejectedRecord(*row)
    gap = f"SELECT {_GAP} FROM gaps WHERE {_SPOOL} AND $at BETWEEN first_sequence AND last_sequence"
    for row in run(gap, {**spool, "at": sequence}):
        return GapRecord(*row)
    return Absence.EXPIRED if expired else Absence.LOST


def of_devices(device_ids: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the condition for rows of these devices, and its parameter. Empty: every device."""
    if not device_ids:
        return "true", {}
    return f"device_id IN {names_in('device_ids')}", {"device_ids": as_names(device_ids)}


def _where(filter_: LossFilter, after: Place | None, sequence: str) -> tuple[str, dict[str, Any]]:
    where, values = of_devices(filter_.device_ids)
    if filter_.reason is not None:
        where, values["reason"] = f"{where} AND reason = $reason", filter_.reason
    if after is not None:
        # The time is a literal: with a parameter, DuckDB would read `received_at` of every row.
        where += f" AND {_AFTER.format(us=after[0], sequence=sequence)}"
        names = ("after_device", "after_spool", "after_sequence")
        values.update(zip(names, after[1:], strict=True))
    return where, values
