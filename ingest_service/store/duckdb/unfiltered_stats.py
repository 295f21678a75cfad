"""Statistics without a filter, from the totals over all blocks and the rows that are newer.

They read about one row per key, however many models, hours and classes a device has.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ingest_service.store.duckdb.rollup_sql import BUCKET
from ingest_service.store.duckdb.totals import KINDS

MAX_KEYS = 1000
"""Maximum number of devices, models and classes in statistics."""
RunQuery = Callable[[str, Mapping[str, Any]], list[tuple[Any, ...]]]
"""Function that runs a query with named parameters, in the transaction of the statistics."""
Kinds: TypeAlias = "dict[str, list[tuple[Any, ...]]]"
"""Rows by kind of key: key, total, defects, detections, first and last capture (us since 1970)."""

# A literal and not a parameter: with a parameter, DuckDB would read `received_at` of every row.
_NEWER = "received_at > make_timestamptz({newer_than})"
_KEYS = f"""
    SELECT {{key}} AS name, count(*) AS total, count(*) FILTER (WHERE defect_detected) AS defects,
        sum(len(detections)) AS detections
    FROM predictions WHERE {_NEWER} GROUP BY {{key}}
"""
_CLASSES = f"""
    SELECT name, count(*) AS total, 0 AS defects, 0 AS detections
    FROM (
        SELECT unnest(list_transform(detections, lambda d: d.class_name)) AS name
        FROM predictions WHERE {_NEWER}
    )
    GROUP BY name
"""
_BUCKETS = f"""
    SELECT bucket::VARCHAR AS name, count(*) AS total, 0 AS defects, 0 AS detections
    FROM (SELECT {BUCKET} AS bucket FROM predictions WHERE {_NEWER}) WHERE bucket IS NOT NULL
    GROUP BY bucket
"""
_TOTALS = """
    SELECT name, sum(total), sum(defects), sum(detections)
    FROM (
        SELECT name, total, defects, detections FROM totals WHERE kind = $kind
        UNION ALL ({newer})
    )
    GROUP BY name HAVING sum(total) > 0 ORDER BY 2 DESC, 1 {limit}
"""
_CAPTURED = f"""
    SELECT epoch_us(min(first)), epoch_us(max(last)) FROM (
        SELECT min(first_captured_at) AS first, max(last_captured_at) AS last FROM block_times
        UNION ALL SELECT min(captured_at), max(captured_at) FROM predictions WHERE {_NEWER}
    )
"""


def read_totals(run: RunQuery, newer_than: int) -> Kinds:
    """Return the sums over all predictions for each kind of key, largest first.

    Args:
        run: runs the queries, which must all see one snapshot.
        newer_than: the end of the last block, us since 1970.
    """
    ((first, last),) = run(_CAPTURED.format(newer_than=newer_than), {})
    kinds: Kinds = {}
    for kind in KINDS:
        limit = "" if kind == "bucket" else f"LIMIT {MAX_KEYS}"
        newer = _newer(kind).format(key=kind, newer_than=newer_than)
        if rows := run(_TOTALS.format(newer=newer, limit=limit), {"kind": kind}):
            kinds[kind] = [(*row, first, last) for row in rows]
    return kinds


def _newer(kind: str) -> str:
    """Return the query for the rows that are in no block, grouped by a kind of key."""
    return {"class_name": _CLASSES, "bucket": _BUCKETS}.get(kind, _KEYS)
