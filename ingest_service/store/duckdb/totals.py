"""Sums over all blocks by one kind of key at a time, for statistics without a filter.

`rollups` has a row for each hour, device, model, source and verdict of a block: a single device
with many models and hours makes as many rows there as it sends predictions. Here a key has one row,
and a few more until they are added up. As in a log-structured merge, rows are only appended: those
of a new block, and with a minus sign those of a block that retention deletes. When the appended
ones are as many as the others, all are added up.
"""

import duckdb

KINDS = ("device_id", "model_name", "source", "class_name", "bucket")
"""Kinds of keys: columns of predictions, the classes of detections, and buckets of times."""
APPENDED = 20_000
"""Appended rows that are left alone, at most, or as many as there are of the others."""

_ADD = """
    INSERT INTO totals
    SELECT kind, name, {sign} * total, {sign} * defects, {sign} * detections, 0 FROM ({sums})
"""
_OF_KEY = """
    SELECT '{key}' AS kind, {key} AS name, sum(predictions)::BIGINT AS total,
        coalesce(sum(predictions) FILTER (WHERE defect_detected), 0)::BIGINT AS defects,
        sum(detections)::BIGINT AS detections
    FROM rollups WHERE {where} GROUP BY {key}
"""
_OF_LIST = """
    SELECT '{kind}' AS kind, item.{name}::VARCHAR AS name, sum(item.{count})::BIGINT AS total,
        0 AS defects, 0 AS detections
    FROM (SELECT unnest({column}) AS item FROM rollups WHERE {where}) GROUP BY item.{name}
"""
_BLOCKS = "through > make_timestamptz($after) AND through <= make_timestamptz($through)"
_APPENDED = """
    SELECT count(*) FILTER (WHERE run = 0), count(*) FILTER (WHERE run > 0), max(run) FROM totals
"""
_ADD_UP = """
    INSERT INTO totals
    SELECT kind, name, sum(total)::BIGINT, sum(defects)::BIGINT, sum(detections)::BIGINT, $run
    FROM totals GROUP BY kind, name HAVING sum(total) <> 0 ORDER BY kind
"""


def add_blocks(cursor: duckdb.DuckDBPyConnection, after: int, through: int) -> None:
    """Add the sums of blocks, which are in `rollups`, in the transaction that is open.

    Args:
        cursor: the connection.
        after: the blocks begin after this time, us since 1970.
        through: the end of the last of them.
    """
    _append(cursor, 1, after, through)


def subtract_blocks(cursor: duckdb.DuckDBPyConnection, after: int, through: int) -> None:
    """Take the sums of blocks away, which are still in `rollups`, in the transaction that is open.

    Arguments as those of `add_blocks`.
    """
    _append(cursor, -1, after, through)


def add_up(cursor: duckdb.DuckDBPyConnection) -> bool:
    """Make each key one row, in the transaction that is open; return False: they are few enough."""
    ((appended, others, run),) = cursor.execute(_APPENDED).fetchall()
    if appended <= max(APPENDED, others):
        return False
    cursor.execute(_ADD_UP, {"run": run + 1})
    cursor.execute("DELETE FROM totals WHERE run <= $run", {"run": run})
    return True


def _append(cursor: duckdb.DuckDBPyConnection, sign: int, after: int, through: int) -> None:
    for sums in _sums():
        query = _ADD.format(sign=sign, sums=sums.format(where=_BLOCKS))
        cursor.execute(query, {"after": after, "through": through})


def _sums() -> list[str]:
    """Return a query for each kind; DuckDB 1.5 hangs where one query unnests two lists."""
    lists = (
        {"kind": "class_name", "name": "class_name", "count": "detections", "column": "classes"},
        {"kind": "bucket", "name": "bucket", "count": "predictions", "column": "times"},
    )
    keys = [_OF_KEY.format(key=key, where="{where}") for key in KINDS[:3]]
    return [*keys, *(_OF_LIST.format(where="{where}", **each) for each in lists)]
