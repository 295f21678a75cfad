"""The table of gaps in a spool file: runs of sequences that will never be sent."""

import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from edge.spool.entries import Gap, GapReason

SCHEMA = """
CREATE TABLE gaps (
    first_sequence INTEGER PRIMARY KEY,
    last_sequence INTEGER NOT NULL,
    reason INTEGER NOT NULL,
    declared_at REAL NOT NULL,
    checksum INTEGER NOT NULL
)
"""
# Constant names that are joined into the statements below; values are always parameters.
_COLUMNS = "first_sequence, last_sequence, reason, declared_at, checksum"


class GapTable:
    """The gaps of a spool. No two overlap, and neighbours differ in reason.

    A row with a wrong checksum is ignored: its sequences are then missing.

    Args:
        db: the connection. Changes need a transaction of the caller.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def declare(self, first: int, last: int, reason: GapReason, declared_at: float) -> None:
        """Add a run, or extend the run before it if that has the same reason."""
        before = next(self._find("first_sequence < ? ORDER BY first_sequence DESC", first), None)
        if before is not None and (before.last, before.reason) == (first - 1, reason):
            first = before.first
        self._put(Gap(first, last, reason, declared_at))

    def after(self, sequence: int, limit: int) -> list[Gap]:
        """Return at most `limit` runs that extend beyond a sequence, in ascending order."""
        gaps = self._find("last_sequence > ? ORDER BY first_sequence", sequence)
        return list(islice(gaps, limit))

    def within(self, first: int, last: int) -> list[Gap]:
        """Return the runs that overlap `first` to `last`, in ascending order."""
        where = "last_sequence >= ? AND first_sequence <= ? ORDER BY first_sequence"
        return list(self._find(where, first, last))

    def acknowledge(self, through: int) -> None:
        """Delete the runs up to a sequence; cut the run that extends beyond it."""
        longer = [gap for gap in self.within(through, through) if gap.last > through]
        self._db.execute("DELETE FROM gaps WHERE first_sequence <= ?", (through,))
        for gap in longer:
            self._put(replace(gap, first=through + 1))

    def shift(self, by: int) -> None:
        """Subtract `by` from every sequence."""
        gaps = list(self._find("true ORDER BY first_sequence"))
        self._db.execute("DELETE FROM gaps")
        for gap in gaps:
            self._put(replace(gap, first=gap.first - by, last=gap.last - by))

    def _put(self, gap: Gap) -> None:
        values = (gap.first, gap.last, int(gap.reason), float(gap.declared_at))
        self._db.execute(
            f"INSERT OR REPLACE INTO gaps ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",  # noqa: S608
            (*values, _checksum(values)),
        )

    def _find(self, where: str, *values: int) -> Iterator[Gap]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM gaps WHERE {where}", values)  # noqa: S608
        for first, last, reason, declared_at, checksum in rows:
            if _checksum((first, last, reason, declared_at)) == checksum:
                yield Gap(first, last, GapReason(reason), declared_at)


def _checksum(values: tuple[Any, ...]) -> int:
    return zlib.crc32(repr(values).encode())
