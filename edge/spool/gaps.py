"""The gaps of a spool file."""

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
# Joined into statements below: names of ours, never a value.
_COLUMNS = "first_sequence, last_sequence, reason, declared_at, checksum"


class GapTable:
    """Runs of sequences that will never be sent. No two overlap; neighbours differ in reason.

    A row that is not what was written counts as not there: its sequences are then missing.

    Args:
        db: the connection; every change happens inside the caller's transaction.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def declare(self, first: int, last: int, reason: GapReason, declared_at: float) -> None:
        """Add a run, or make the one before it longer."""
        before = next(self._find("first_sequence < ? ORDER BY first_sequence DESC", first), None)
        if before is not None and (before.last, before.reason) == (first - 1, reason):
            first = before.first
        self._put(Gap(first, last, reason, declared_at))

    def after(self, sequence: int, limit: int) -> list[Gap]:
        """Return the first runs that reach beyond a sequence, in order."""
        found = self._find("last_sequence > ? ORDER BY first_sequence", sequence)
        return list(islice(found, limit))

    def within(self, first: int, last: int) -> list[Gap]:
        """Return the runs that have any of these sequences, in order."""
        where = "last_sequence >= ? AND first_sequence <= ? ORDER BY first_sequence"
        return list(self._find(where, first, last))

    def acknowledge(self, through: int) -> None:
        """Delete runs up to a sequence, the first part of a longer run included."""
        longer = [gap for gap in self.within(through, through) if gap.last > through]
        self._db.execute("DELETE FROM gaps WHERE first_sequence <= ?", (through,))
        for gap in longer:
            self._put(replace(gap, first=through + 1))

    def shift(self, by: int) -> None:
        """Make every sequence smaller."""
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
