"""Sums of predictions by spool over all blocks, for the ledger without reading all rows."""

import duckdb

# Literals and not parameters: with parameters, DuckDB would read `received_at` of every row.
_BLOCK = "received_at > make_timestamptz({after}) AND received_at <= make_timestamptz({through})"
_ADD_SPOOLS = f"""
    INSERT INTO spool_sums
    SELECT DISTINCT device_id, spool_id, 0 FROM predictions ANTI JOIN spool_sums
    USING (device_id, spool_id) WHERE {_BLOCK}
"""
_ADD = f"""
    UPDATE spool_sums AS s SET predictions = s.predictions + b.predictions
    FROM (
        SELECT device_id, spool_id, count(*) AS predictions FROM predictions WHERE {_BLOCK}
        GROUP BY device_id, spool_id
    ) AS b
    WHERE s.device_id = b.device_id AND s.spool_id = b.spool_id
"""


def add_block(cursor: duckdb.DuckDBPyConnection, after: int, through: int) -> None:
    """Add the predictions of a block to the sums of their spools, in the open transaction.

    Args:
        cursor: the connection.
        after: the block begins after this time, us since 1970.
        through: its end, us since 1970.
    """
    for statement in (_ADD_SPOOLS, _ADD):
        cursor.execute(statement.format(after=after, through=through))
