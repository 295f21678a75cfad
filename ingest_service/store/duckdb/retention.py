"""Deletion of expired rows, one slice per transaction."""

import duckdb

from ingest_service.store.duckdb.rollups import Block, expire_sums
from ingest_service.store.retention_clock import SLACK_US, ClockRecord, Uptime

REJECTED_SLICE = 50_000
"""Approximate number of rejected predictions or streams that one transaction deletes."""

_OLDEST = """
    SELECT epoch_us(after), epoch_us(through), predictions FROM blocks
    WHERE through < make_timestamptz($before) ORDER BY through LIMIT 1
"""
_BLOCK = "received_at > make_timestamptz($after) AND received_at <= make_timestamptz($through)"
_SLICE = f"""
    SELECT epoch_us(max({{time}})) FROM (
        SELECT {{time}} FROM {{table}} WHERE {{time}} < make_timestamptz($before)
        ORDER BY {{time}} LIMIT {REJECTED_SLICE}
    )
"""
_UPTO = "{time} <= make_timestamptz($upto)"
_ADD_SPOOLS = """
    INSERT INTO expired
    SELECT DISTINCT device_id, spool_id, 0, 0 FROM {table} ANTI JOIN expired
    USING (device_id, spool_id) WHERE {where}
"""
_COUNT = """
    UPDATE expired AS e SET {column} = e.{column} + d.deleted
    FROM (
        SELECT device_id, spool_id, count(*) AS deleted FROM {table} WHERE {where}
        GROUP BY device_id, spool_id
    ) AS d
    WHERE e.device_id = d.device_id AND e.spool_id = d.spool_id
"""
_EXPORTED = "SELECT epoch_us(max(through)) FROM exports WHERE finished_at IS NOT NULL"
_EXPIRABLE = """
    SELECT coalesce(sum(predictions), 0)::BIGINT FROM blocks
    WHERE through < make_timestamptz($before)
"""
_CLOCK_RECORD = """
    SELECT epoch_us(reached_at), boot_id, uptime_seconds, slack_seconds FROM retention_clock
"""
_LAST_COMMIT = "SELECT epoch_us(max(updated_at)) FROM watermarks"
_ADD_CLOCK_RECORD = """
    INSERT INTO retention_clock
    VALUES (make_timestamptz($reached_us), $boot, $seconds, $slack_seconds)
"""


def expire_block(cursor: duckdb.DuckDBPyConnection, before_us: int, exported_only: bool) -> int:
    """Delete the oldest block if all of it is expired, in the open transaction.

    Args:
        cursor: the connection.
        before_us: rows that were committed earlier are expired, us since 1970.
        exported_only: True: keep predictions that are not exported.

    Returns:
        Number of deleted predictions; 0: nothing is expired.
    """
    before_us = _exported_before(cursor, before_us) if exported_only else before_us
    blocks = cursor.execute(_OLDEST, {"before": before_us}).fetchall()
    if not blocks:
        return 0
    block = Block(*blocks[0])
    span = {"after": block.after, "through": block.through}
    _count(cursor, "predictions", "predictions", _BLOCK, span)
    for table in ("predictions", "prediction_shapes"):
        cursor.execute(f"DELETE FROM {table} WHERE {_BLOCK}", span)
    expire_sums(cursor, block.after, block.through)
    return block.predictions


def expirable(cursor: duckdb.DuckDBPyConnection, before_us: int, exported_only: bool) -> int:
    """Return how many predictions repeated calls of `expire_block` would delete."""
    before_us = _exported_before(cursor, before_us) if exported_only else before_us
    ((count,),) = cursor.execute(_EXPIRABLE, {"before": before_us}).fetchall()
    return int(count)


def read_clock_record(cursor: duckdb.DuckDBPyConnection) -> ClockRecord | None:
    """Return the clock's record, or one made from the last commit; None: nothing was committed."""
    rows = cursor.execute(_CLOCK_RECORD).fetchall()
    if not rows:
        ((last,),) = cursor.execute(_LAST_COMMIT).fetchall()
        return None if last is None else ClockRecord(last, Uptime("", 0.0), SLACK_US)
    reached, boot, seconds, slack = rows[0]
    return ClockRecord(reached, Uptime(boot, seconds), round(slack * 1e6))


def write_clock_record(cursor: duckdb.DuckDBPyConnection, record: ClockRecord) -> None:
    """Replace the clock's record, in the open transaction."""
    cursor.execute("DELETE FROM retention_clock")
    values = {"reached_us": record.reached_us, "slack_seconds": record.slack_us / 1e6}
    cursor.execute(_ADD_CLOCK_RECORD, {**values, **record.uptime._asdict()})


def expire_rejected(cursor: duckdb.DuckDBPyConnection, before_us: int) -> int:
    """Delete a slice of the oldest rejected predictions; return how many."""
    upto = _slice_end(cursor, "rejected_predictions", "received_at", before_us)
    if upto is None:
        return 0
    where, values = _UPTO.format(time="received_at"), {"upto": upto}
    _count(cursor, "rejected_predictions", "rejected", where, values)
    return _delete(cursor, "rejected_predictions", where, values)


def expire_streams(cursor: duckdb.DuckDBPyConnection, before_us: int) -> int:
    """Delete a slice of the oldest rows of `streams`; return how many."""
    upto = _slice_end(cursor, "streams", "opened_at", before_us)
    if upto is None:
        return 0
    return _delete(cursor, "streams", _UPTO.format(time="opened_at"), {"upto": upto})


def _exported_before(cursor: duckdb.DuckDBPyConnection, before_us: int) -> int:
    ((exported,),) = cursor.execute(_EXPORTED).fetchall()
    return 0 if exported is None else min(before_us, exported + 1)


def _slice_end(
    cursor: duckdb.DuckDBPyConnection, table: str, time: str, before_us: int
) -> int | None:
    query = _SLICE.format(table=table, time=time)
    ((upto,),) = cursor.execute(query, {"before": before_us}).fetchall()
    return None if upto is None else int(upto)


def _count(
    cursor: duckdb.DuckDBPyConnection, table: str, column: str, where: str, values: dict[str, int]
) -> None:
    """Add the rows that are about to be deleted to the counts of their spools in `expired`."""
    cursor.execute(_ADD_SPOOLS.format(table=table, where=where), values)
    cursor.execute(_COUNT.format(table=table, column=column, where=where), values)


def _delete(
    cursor: duckdb.DuckDBPyConnection, table: str, where: str, values: dict[str, int]
) -> int:
    ((count,),) = cursor.execute(f"DELETE FROM {table} WHERE {where}", values).fetchall()
    return int(count)
