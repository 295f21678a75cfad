"""A check of the ledger that costs little, however many predictions are stored.

The view `ledger` counts every row of `predictions` by spool. This check takes the number of each
device's predictions from the table `totals`, and counts only rows that are newer than the sums.
"""

import duckdb

from ingest_service.store.protocol import LedgerCheck

_DIFFERENCES = """
    SELECT count(*), coalesce(sum(abs(difference)), 0)::VARCHAR
    FROM (
        SELECT sum(sequences) AS difference
        FROM (
            SELECT name AS device_id, sum(total)::HUGEINT AS sequences
            FROM totals WHERE kind = 'device_id' GROUP BY name
            UNION ALL
            SELECT device_id, count(*) FROM predictions
            WHERE received_at > (SELECT coalesce(max(through), '-infinity') FROM blocks)
            GROUP BY device_id
            UNION ALL
            SELECT device_id, count(*) FROM rejected_predictions GROUP BY device_id
            UNION ALL
            SELECT device_id, sum(last_sequence::HUGEINT - first_sequence + 1)
            FROM gaps GROUP BY device_id
            UNION ALL
            SELECT device_id, sum(predictions::HUGEINT + rejected) FROM expired GROUP BY device_id
            UNION ALL
            SELECT device_id, -sum(committed_through::HUGEINT) FROM watermarks GROUP BY device_id
        )
        GROUP BY device_id
    )
    WHERE difference <> 0
"""


def check(cursor: duckdb.DuckDBPyConnection) -> LedgerCheck:
    """Return how many devices are not balanced, of the snapshot of the open transaction.

    Every committed sequence of a device is a stored prediction, a rejected one, in a gap, or was
    deleted by retention.
    """
    ((devices, difference),) = cursor.execute(_DIFFERENCES).fetchall()
    return LedgerCheck(int(devices), int(difference))
