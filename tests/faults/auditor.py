"""The auditor: holds the ledgers of the nodes against the server's database, in SQL on the file."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from tests.faults.ledger import Life

# Image ids that were refused are in the JSON of the original.
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
# Every claim to sequences, with how far those before it in the same spool reach.
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
_UNDECLARED = "SELECT coalesce(sum(greatest(first - coalesce(reached, 0) - 1, 0)), 0) FROM claims"
_CLAIMED_TWICE = (
    "SELECT coalesce(sum(least(reached, last) - first + 1), 0) FROM claims WHERE first <= reached"
)


@dataclass(frozen=True)
class Audit:
    """What the store has of what was logged."""

    stored: int
    """Predictions in the store, rejected ones included."""
    spooled: int
    """Predictions that the nodes knew to be spooled."""
    missing: int
    """Of them, those that are not in the store."""
    gap_sequences: int
    """Sequences that were declared as gaps."""
    doubled: int
    """Predictions beyond the first with the same image id."""
    claimed_twice: int
    """Sequences that more than one row, rejection or gap claims."""
    undeclared: int
    """Sequences up to the watermark that nothing claims."""
    strange: int
    """Predictions in the store that nobody logged."""
    balanced: bool
    """What the store's own ledger says."""
    spools: int
    """Spools (by device and id) that the store knows."""

    @property
    def lost(self) -> int:
        """Predictions that were spooled, are not in the store, and that no gap accounts for."""
        return max(0, self.missing - self.gap_sequences)

    def check(self) -> None:
        """Fails unless the store agrees with itself, and has nothing that nobody logged."""
        assert self.balanced, self
        assert not self.claimed_twice, self
        assert not self.strange, self


def audit(database: Path, lives: Iterable[Life]) -> Audit:
    """Compares the store with what the nodes have written down.

    Args:
        database: the DuckDB file; no process may have it open.
        lives: of all nodes that logged to it, whichever device they were.
    """
    rows = list(lives)
    said = pa.table(
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

        connection.register("lives", said)
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
            balanced=bool(number("SELECT coalesce(bool_and(balanced), true)::INT FROM ledger")),
            spools=number("SELECT count(*) FROM watermarks"),
        )
