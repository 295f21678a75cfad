"""Audit of the demo: logged predictions beside the database, by SQL on the file itself."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import duckdb


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts of the log after the services have ended."""

    committed: int
    """Logged predictions that are in the database, each counted once."""
    lost: int
    """Logged predictions that are not in the database."""
    duplicates: int
    """Rows beyond the first of a prediction."""
    from_device: int
    """Rows that the device's model answered."""
    from_cloud: int
    """Rows that the inference service answered."""
    by_class: dict[str, int]
    """Detections by class name."""
    balanced: bool
    """True if accepted + rejected + gaps = committed position for every device and spool."""


def audit(database: Path, logged: Collection[str]) -> Audit:
    """Compare the database with what was logged.

    Args:
        database: the DuckDB file; no process may have it open.
        logged: image ids of the predictions that were logged, each once.
    """
    with duckdb.connect(str(database), read_only=True) as connection:
        ids = [row[0] for row in connection.execute("SELECT image_id FROM predictions").fetchall()]
        sources = dict(
            connection.execute(
                "SELECT source, count(*) FROM predictions GROUP BY source"
            ).fetchall()
        )
        classes = connection.execute(
            "SELECT d.class_name, count(*) FROM predictions, unnest(detections) AS t(d) "
            "GROUP BY 1 ORDER BY 1"
        ).fetchall()
        balanced = connection.execute("SELECT bool_and(balanced) FROM ledger").fetchone()
    stored = set(ids)
    return Audit(
        committed=len(stored & set(logged)),
        lost=len(set(logged) - stored),
        duplicates=len(ids) - len(stored),
        from_device=sources.get("device", 0),
        from_cloud=sources.get("cloud", 0),
        by_class=dict(classes),
        balanced=balanced is not None and bool(balanced[0]),
    )
