"""An in-memory index from spools to their rows in the table `watermarks`.

Without it, each commit would search the whole table, which grows with every new spool. The index
stays valid because the file has no other writer. A row that is not at its expected place is
detected, and the index is discarded.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

from ingest_service.store.protocol import SpoolKey

FAR = 4096
"""Minimum distance in rows between two ranges: two of DuckDB's vectors."""
MAX_RANGES = 8
"""Maximum number of ranges of rows that one commit scans."""
_RECENT = 10_000
"""Maximum number of hashes in the unsorted set before they are merged into the array."""

_HASHES = "SELECT md5_number_lower(device_id || chr(0) || spool_id) AS hash FROM watermarks"
_COUNT = "SELECT count(*) FROM watermarks"


class Range(NamedTuple):
    """Rows of the table, both ends included."""

    first: int
    last: int


class SpoolRows:
    """An index of spools: about 8 bytes per spool, and 200 more per spool whose row is known.

    Used by the writer's thread only. The first use loads it.
    """

    def __init__(self) -> None:
        self._sorted: NDArray[np.uint64] | None = None
        self._recent: set[int] = set()
        self._rows: dict[SpoolKey, int] = {}

    def missing(
        self, cursor: duckdb.DuckDBPyConnection, spools: Iterable[SpoolKey]
    ) -> set[SpoolKey]:
        """Return the spools that are certainly not in the table."""
        if self._sorted is None:
            hashes = cursor.execute(_HASHES).fetchnumpy()["hash"]
            self._sorted = np.sort(np.asarray(hashes, dtype=np.uint64))
        return {spool for spool in spools if not self._may_have(_hash(spool), self._sorted)}

    def learn(self, spool: SpoolKey, row: int) -> None:
        """Add the row of a spool, as read from the table."""
        self._rows[spool] = row

    def added(self, spools: Sequence[SpoolKey], first_row: int) -> None:
        """Add new spools, in the order of their rows, after they were committed."""
        self._rows.update({spool: first_row + at for at, spool in enumerate(spools)})
        self._recent.update(map(_hash, spools))
        if len(self._recent) > _RECENT and self._sorted is not None:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent = set()

    def ranges(self, spools: Collection[SpoolKey]) -> list[Range]:
        """Return at most `MAX_RANGES` ranges that cover the rows of these spools, all known."""
        return join_rows(self._rows[spool] for spool in spools)

    def knows(self, spool: SpoolKey) -> bool:
        """Return True if the row of a spool is known."""
        return spool in self._rows

    def forget_rows(self) -> None:
        """Discard the rows, but keep the set of existing spools."""
        self._rows = {}

    def _may_have(self, of_spool: int, known: NDArray[np.uint64]) -> bool:
        if of_spool in self._recent:
            return True
        at = int(np.searchsorted(known, np.uint64(of_spool)))
        return at < len(known) and int(known[at]) == of_spool


def count_rows(cursor: duckdb.DuckDBPyConnection) -> int:
    """Return the number of rows, which is the next row's number: rows are never deleted."""
    ((count,),) = cursor.execute(_COUNT).fetchall()
    return int(count)


def join_rows(rows: Iterable[int]) -> list[Range]:
    """Return at most `MAX_RANGES` ranges that cover the rows; close rows share a range."""
    ordered = sorted(rows)
    gaps = sorted((b - a for a, b in itertools.pairwise(ordered)), reverse=True)
    widest = max(FAR, gaps[MAX_RANGES - 1] + 1 if len(gaps) >= MAX_RANGES else 0)
    ranges: list[Range] = []
    for row in ordered:
        if ranges and row - ranges[-1].last < widest:
            ranges[-1] = Range(ranges[-1].first, row)
        else:
            ranges.append(Range(row, row))
    return ranges


def _hash(spool: SpoolKey) -> int:
    text = f"{spool.device_id}\0{spool.spool_id}".encode()
    # Equal to DuckDB's md5_number_lower. A collision only costs a query.
    return int.from_bytes(hashlib.md5(text, usedforsecurity=False).digest()[8:], "little")
