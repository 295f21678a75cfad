"""Reads statistics without a filter: the totals of all blocks, and the rows that are newer.

However many models, hours and classes a device has, a key is read about once.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ingest_service.store.duckdb.rollup_sql import BUCKET
from ingest_service.store.duckdb.totals import KINDS

MAX_KEYS = 1000
"""Most devices, models and classes that statistics list."""
RunQuery = Callable[[str, Mapping[str, Any]], list[tuple[Any, ...]]]
"""Runs a query with named parameters in the transaction of the statistics."""
Kinds: TypeAlias = "dict[str, list[tuple[Any, ...]]]"
"""By kind of key: key, total, defects, detections, first and last capture (us since 1970)."""

# A number in the text and no parameter: else DuckDB would read `received_at` of every row.
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
    """Return the sums over everything by each kind of key, those with the most first.

    Args:
        run: runs the queries; all must see one moment.
        newer_than: the last block's end, us since 1970.
    """
    ((first, last),) = run(_CAPTURED.format(newer_than=newer_than), {})
    kinds: Kinds = {}
    for kind in KINDS:
        limit = "" if kind == "bucket" else f"LIMIT {MAX_KEYS}"
        newer = _newer(kind).format(key=kind, newer_than=newer_than)
        if found := run(_TOTALS.format(newer=newer, limit=limit), {"kind": kind}):
            kinds[kind] = [(*row, first, last) for row in found]
    return kinds


def _newer(kind: str) -> str:
    """Return the query for the rows that are in no block, by a kind of key."""
    return {"class_name": _CLASSES, "bucket": _BUCKETS}.get(kind, _KEYS)
