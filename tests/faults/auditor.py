"""The auditor, which compares the nodes' ledgers with the server's database, by SQL on the file."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from tests.faults.ledger import Life

# The image ids of rejected predictions are in the JSON of the original.
_STORED = """
CREATE TEMP TABLE stored AS
SELECT device_id, spool_id, sequence, image_id FROM predictions
UNION ALL
SELECT device_id, spool_id, sequence, original ->> '$.image_id' FROM rejected_predictions
"""
_MISSING = """
SELECT count(*) FROM lives, unnest(range(lives.spooled)) AS numbers(number)
WHERE NOT EXISTS (SELECT 1 FROM stored WHERE image_id = name || '/' || number)
"""
_DOUBLED = "SELECT count(*) - count(DISTINCT image_id) FROM stored"
_STRANGE = """
SELECT count(*) FROM stored LEFT JOIN lives ON name = split_part(image_id, '/', 1)
WHERE coalesce(split_part(image_id, '/', 2)::BIGINT >= logs, true)
"""
# Every range of sequences, with the last sequence of all ranges before it in the same spool.
_CLAIMS = """
CREATE TEMP TABLE claims AS
SELECT *, max(last) OVER (
    PARTITION BY device_id, spool_id ORDER BY first, last
    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
) AS reached
FROM (
    SELECT device_id, spool_id, sequence AS first, sequence AS last FROM stored
    UNION ALL SELECT device_id, spool_id, first_sequence, last_sequence FROM gaps
    UNION ALL SELECT device_id, spool_id, committed_through + 1, committed_through + 1
    FROM watermarks
)
"""
# Those with an object of the class `posed` have one row of keypoints, which has their sequence of
# the ledger as its x; all others have none.
_MISSHAPEN = """
SELECT count(*) FROM (
    SELECT device_id, spool_id, sequence, received_at,
        split_part(image_id, '/', 2)::FLOAT AS number
    FROM predictions WHERE detections[1].class_name = 'posed'
) AS p FULL JOIN (
    SELECT device_id, spool_id, sequence, received_at, keypoints[1][1].x AS number, count(*) AS rows
    FROM prediction_shapes GROUP BY ALL
) AS s USING (device_id, spool_id, sequence, received_at, number)
WHERE p.device_id IS NULL OR coalesce(rows, 0) <> 1
"""
_UNDECLARED = "SELECT coalesce(sum(greatest(first - coalesce(reached, 0) - 1, 0)), 0) FROM claims"
_CLAIMED_TWICE = (
    "SELECT coalesce(sum(least(reached, last) - first + 1), 0) FROM claims WHERE first <= reached"
)


@dataclass(frozen=True)
class Audit:
    """The auditor's counts of logged and stored predictions."""

    stored: int
    """Predictions in the store, rejected ones included."""
    spooled: int
    """Predictions that were spooled by the nodes' ledgers."""
    missing: int
    """Spooled predictions that are not in the store."""
    gap_sequences: int
    """Sequences that were declared as gaps."""
    doubled: int
    """Predictions beyond the first with the same image id."""
    claimed_twice: int
    """Sequences that belong to more than one row, rejection or gap."""
    undeclared: int
    """Sequences up to the watermark that belong to no row, rejection or gap."""
    strange: int
    """Predictions in the store that no node logged."""
    misshapen: int
    """Predictions with keypoints lost, doubled or of another, and keypoints of no prediction."""
    balanced: bool
    """True if the store's own ledger balances."""
    spools: int
    """Number of spools (by device and id) in the store."""

    @property
    def lost(self) -> int:
        """The number of spooled predictions that are neither in the store nor in a gap."""
        return max(0, self.missing - self.gap_sequences)

    def check(self) -> None:
        """Fail unless the store is consistent, and has no prediction that no node logged."""
        assert self.balanced, self
        assert not self.claimed_twice, self
        assert not self.strange, self
        assert not self.misshapen, self


def audit(database: Path, lives: Iterable[Life]) -> Audit:
    """Compare the store with the nodes' ledgers.

    Args:
        database: the DuckDB file; no process may have it open.
        lives: lives of all nodes that logged to it, of any device.
    """
    rows = list(lives)
    table = pa.table(
        {
            "name": pa.array([life.name for life in rows], pa.string()),
            "logs": pa.array([life.logs for life in rows], pa.int64()),
            "spooled": pa.array([life.spooled for life in rows], pa.int64()),
        }
    )
    with duckdb.connect(str(database), read_only=True) as connection:

        def number(sql: str) -> int:
            row = connection.execute(sql).fetchone()
            assert row is not None
            return int(row[0] or 0)

        connection.register("lives", table)
        connection.execute(_STORED)
        connection.execute(_CLAIMS)
        return Audit(
            stored=number("SELECT count(*) FROM stored"),
            spooled=number("SELECT sum(spooled) FROM lives"),
            missing=number(_MISSING),
            gap_sequences=number("SELECT sum(last_sequence - first_sequence + 1) FROM gaps"),
            doubled=number(_DOUBLED),
            claimed_twice=number(_CLAIMED_TWICE),
            undeclared=number(_UNDECLARED),
            strange=number(_STRANGE),
            misshapen=number(_MISSHAPEN),
            balanced=bool(number("SELECT coalesce(bool_and(balanced), true)::INT FROM ledger")),
            spools=number("SELECT count(*) FROM watermarks"),
        )
