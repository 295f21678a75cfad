"""Totals: sums over all blocks by each kind of key, for statistics without a filter.

`rollups` has a row for each hour, device, model, source and verdict of a block: a device with many
models and hours creates as many rows there as it sends predictions. The table `totals` has one row
per key, and a few more until they are compacted. As in a log-structured merge tree, rows are only
appended: those of a new block, and with a minus sign those of a block that retention deletes. When
there are as many appended rows as others, all are compacted.
"""

from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

_KEYS = ("device_id", "model_name", "source")
_LISTS = (("class_name", "classes", "detections"), ("bucket", "times", "predictions"))
"""Kinds of keys that are lists in `rollups`: the kind, its column, and the counted number."""
KINDS = (*_KEYS, *(kind for kind, _, _ in _LISTS))
"""Kinds of keys: columns of predictions, classes of detections, and buckets of times."""
_COUNTS = ("total", "defects", "detections")
APPENDED = 20_000
"""Appended rows before a compaction; also at least as many as there are other rows."""

_BLOCKS = """
    SELECT device_id, model_name, source, defect_detected, predictions, detections, classes, times
    FROM rollups
    WHERE through > make_timestamptz($after) AND through <= make_timestamptz($through)
"""
_ADD = "INSERT INTO totals SELECT kind, name, total, defects, detections, 0 FROM sums"
_APPENDED = """
    SELECT count(*) FILTER (WHERE run = 0), count(*) FILTER (WHERE run > 0), max(run) FROM totals
"""
_ADD_UP = """
    INSERT INTO totals
    SELECT kind, name, sum(total)::BIGINT, sum(defects)::BIGINT, sum(detections)::BIGINT, $run
    FROM totals GROUP BY kind, name HAVING sum(total) <> 0 ORDER BY kind
"""


def add_block(cursor: duckdb.DuckDBPyConnection, rollups: pa.Table) -> None:
    """Add the rollups of a block to the totals, in the open transaction."""
    _append(cursor, 1, rollups)


def subtract_blocks(cursor: duckdb.DuckDBPyConnection, after: int, through: int) -> None:
    """Subtract the rollups of blocks, which are not yet deleted, in the open transaction.

    Args:
        cursor: the connection.
        after: the blocks begin after this time, us since 1970.
        through: the end of the last block, us since 1970.
    """
    rows = cursor.execute(_BLOCKS, {"after": after, "through": through}).to_arrow_table()
    _append(cursor, -1, rows)


def add_up(cursor: duckdb.DuckDBPyConnection) -> bool:
    """Compact the totals to one row per key, in the open transaction.

    Returns:
        False: there are too few appended rows, and nothing was done.
    """
    ((appended, others, run),) = cursor.execute(_APPENDED).fetchall()
    if appended <= max(APPENDED, others):
        return False
    cursor.execute(_ADD_UP, {"run": run + 1})
    cursor.execute("DELETE FROM totals WHERE run <= $run", {"run": run})
    return True


def _append(cursor: duckdb.DuckDBPyConnection, sign: int, rows: pa.Table) -> None:
    """Append the sums of rollups for each kind of key, multiplied by `sign`.

    They are computed here and not by SQL: a statement for each kind takes twice as long.
    """
    sums = pa.concat_tables(_sums(rows, sign))
    if not sums.num_rows:
        return
    cursor.register("sums", sums)
    cursor.execute(_ADD)
    cursor.unregister("sums")


def _sums(rows: pa.Table, sign: int) -> Iterator[pa.Table]:
    """Return a table of sums for each kind of key."""
    predictions, zero = rows.column("predictions"), pa.scalar(0, pa.int64())
    defects = pc.if_else(pc.fill_null(rows.column("defect_detected"), False), predictions, zero)
    for kind in _KEYS:
        yield _grouped(kind, rows.column(kind), sign, predictions, defects, rows["detections"])
    for kind, column, count in _LISTS:
        items = pc.list_flatten(rows.column(column))
        yield _grouped(kind, pc.struct_field(items, kind), sign, pc.struct_field(items, count))


def _grouped(kind: str, names: pa.ChunkedArray, sign: int, *counts: pa.ChunkedArray) -> pa.Table:
    """Return the sums of the counts by name, as rows of `totals`; missing counts are 0."""
    columns = dict(zip(_COUNTS, counts, strict=False))
    grouped = pa.table({"name": names, **columns}).group_by("name", use_threads=False)
    sums = grouped.aggregate([(count, "sum") for count in columns])
    zeros = pa.repeat(pa.scalar(0, pa.int64()), sums.num_rows)
    return pa.table(
        {
            "kind": pa.repeat(kind, sums.num_rows),
            "name": sums.column("name").cast(pa.string()),
            **{
                count: pc.multiply(sums.column(f"{count}_sum"), sign) if count in columns else zeros
                for count in _COUNTS
            },
        }
    )
