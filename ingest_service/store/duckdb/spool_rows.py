"""Which spools the table `watermarks` has, and in which of its rows.

Without this, each commit would look for its spools in the whole table, which grows with every spool
that there ever was. The file has no other writer, so what is known here stays true; a row that is
not where it is expected is noticed, and everything is forgotten.
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
"""Rows between two spools from which on they are looked for apart: two vectors of DuckDB's."""
MAX_RANGES = 8
"""Ranges of rows that one commit looks through, at most."""
_RECENT = 10_000
"""Hashes that are kept in a set before they are sorted in."""

_HASHES = "SELECT md5_number_lower(device_id || chr(0) || spool_id) AS hash FROM watermarks"
_COUNT = "SELECT count(*) FROM watermarks"


class Range(NamedTuple):
    """Rows of the table, both ends included."""

    first: int
    last: int


class SpoolRows:
    """The rows of spools. About 8 bytes for each spool, and 200 for each whose row is remembered.

    Belongs to the writer's thread. It is loaded by the first use.
    """

    def __init__(self) -> None:
        self._sorted: NDArray[np.uint64] | None = None
        self._recent: set[int] = set()
        self._rows: dict[SpoolKey, int] = {}

    def missing(
        self, cursor: duckdb.DuckDBPyConnection, spools: Iterable[SpoolKey]
    ) -> set[SpoolKey]:
        """Return those of the spools that the table certainly does not have."""
        if self._sorted is None:
            found = cursor.execute(_HASHES).fetchnumpy()["hash"]
            self._sorted = np.sort(np.asarray(found, dtype=np.uint64))
        return {spool for spool in spools if not self._may_have(_hash(spool), self._sorted)}

    def learn(self, spool: SpoolKey, row: int) -> None:
        """Note the row of a spool, as the table says it."""
        self._rows[spool] = row

    def added(self, spools: Sequence[SpoolKey], first_row: int) -> None:
        """Note that the table got these spools, in this order; once that is committed."""
        self._rows.update({spool: first_row + at for at, spool in enumerate(spools)})
        self._recent.update(map(_hash, spools))
        if len(self._recent) > _RECENT and self._sorted is not None:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent = set()

    def ranges(self, spools: Collection[SpoolKey]) -> list[Range]:
        """Return few ranges of rows that hold these spools, all of them known."""
        return join_rows(self._rows[spool] for spool in spools)

    def knows(self, spool: SpoolKey) -> bool:
        """Return True if the row of a spool is remembered."""
        return spool in self._rows

    def forget_rows(self) -> None:
        """Forget the rows, and not which spools there are."""
        self._rows = {}

    def _may_have(self, of_spool: int, known: NDArray[np.uint64]) -> bool:
        if of_spool in self._recent:
            return True
        at = int(np.searchsorted(known, np.uint64(of_spool)))
        return at < len(known) and int(known[at]) == of_spool


def count_rows(cursor: duckdb.DuckDBPyConnection) -> int:
    """Return how many rows the table has, none of which is ever deleted: the next one's number."""
    ((count,),) = cursor.execute(_COUNT).fetchall()
    return int(count)


def join_rows(rows: Iterable[int]) -> list[Range]:
    """Return at most `MAX_RANGES` ranges that cover the rows, joined where they are near."""
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
    # As DuckDB's md5_number_lower; two spools that share one are looked up, and no worse off.
    return int.from_bytes(hashlib.md5(text, usedforsecurity=False).digest()[8:], "little")
