"""Write transactions of the DuckDB store, and their statements."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import duckdb
import grpc
import pyarrow as pa

from ingest_service.store.duckdb.commit_clock import CommitClock
from ingest_service.store.duckdb.reader import WATERMARK, read_watermark
from ingest_service.store.duckdb.rejected import (
    Rejected,
    RejectedFilter,
    delete_rejected,
    find_rejected,
)
from ingest_service.store.duckdb.spool_rows import Range, SpoolRows, count_rows
from ingest_service.store.protocol import SHAPES, STREAMS, Changes, SpoolKey, Watermark
from servicekit.errors import SightlineError

_APPENDED = {
    "rejected": "INSERT INTO rejected_predictions BY NAME SELECT *, ? AS received_at FROM incoming",
    "gaps": "INSERT INTO gaps BY NAME SELECT *, ? AS received_at FROM incoming",
}
_ADD_SPOOLS = """
    INSERT INTO watermarks (
        device_id, spool_id, committed_through, duplicates, updated_at, first_digest, last_digest,
        generations
    )
    SELECT
        device_id, spool_id, committed_through, duplicates, $now, first_digest, last_digest,
        generations
    FROM incoming
"""
_FIND_SPOOLS = f"""
    SELECT w.rowid, device_id, spool_id, {WATERMARK}
    FROM watermarks AS w JOIN incoming USING (device_id, spool_id)
"""
_MOVE_WATERMARKS = """
    UPDATE watermarks AS w SET
        committed_through = i.committed_through,
        duplicates = w.duplicates + i.duplicates,
        -- A header alone has created the row before the first prediction came.
        first_digest = CASE WHEN w.committed_through = 0 THEN i.first_digest
            ELSE w.first_digest END,
        last_digest = i.last_digest,
        updated_at = $now
    FROM incoming AS i WHERE w.device_id = i.device_id AND w.spool_id = i.spool_id
        AND w.rowid BETWEEN $first AND $last
"""
_SET_GENERATIONS = """
    UPDATE watermarks AS w SET generations = i.generations
    FROM incoming AS i
    WHERE w.device_id = i.device_id AND w.spool_id = i.spool_id AND i.generations IS NOT NULL
        AND w.rowid BETWEEN $first AND $last
"""


class DuckDBTransaction:
    """A `Transaction` on a cursor of its own, which the caller closes afterwards.

    Args:
        cursor: its connection.
        known: cached watermarks of spools, as of the beginning. The file has no other writer, so a
            group of known spools needs no query.
        spools: the index of the rows of `watermarks`.
        clock: gives the commit its time.

    Attributes:
        moved: the watermarks that become valid with COMMIT.
        added: the spools that get a row with COMMIT, in the order of their rows.
        first_added: number of the first such row.
        streams: the streams that are opened with COMMIT.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        known: Mapping[SpoolKey, Watermark],
        spools: SpoolRows,
        clock: CommitClock,
    ) -> None:
        self._cursor = cursor
        self._known = known
        self._spools = spools
        self._clock = clock
        self._received_at: datetime | None = None
        self._new: set[SpoolKey] = set()
        self._read: dict[SpoolKey, Watermark] = {}
        self.moved: dict[SpoolKey, Watermark] = {}
        self.added: list[SpoolKey] = []
        self.first_added = 0
        self.streams = STREAMS.empty_table()

    def watermarks(self, spools: Collection[SpoolKey]) -> dict[SpoolKey, Watermark]:
        """Return the watermark of each spool."""
        positions = {spool: self._known.get(spool, Watermark()) for spool in spools}
        positions.update(self._find([spool for spool in positions if spool not in self._known]))
        self._read.update(positions)
        return positions

    def _find(self, spools: Sequence[SpoolKey]) -> dict[SpoolKey, Watermark]:
        """Return the watermarks of the spools that have a row, and remember which have none."""
        if not spools:
            return {}
        missing = self._spools.missing(self._cursor, spools)
        positions: dict[SpoolKey, Watermark] = {}
        if present := [spool for spool in spools if spool not in missing]:
            self._name_incoming(pa.Table.from_pylist([spool._asdict() for spool in present]))
            for row, device, spool, *columns in self._cursor.execute(_FIND_SPOOLS).fetchall():
                self._spools.learn(SpoolKey(device, spool), row)
                positions[SpoolKey(device, spool)] = read_watermark(*columns)
        self._new.update(spool for spool in spools if spool not in positions)
        return positions

    def write_bookkeeping(self, changes: Changes, received_at: datetime) -> None:
        """Write everything of a group except its predictions."""
        received_at = self._stamp(received_at)
        for name, statement in _APPENDED.items():
            rows = getattr(changes, name)
            if rows.num_rows:
                self._name_incoming(rows)
                self._cursor.execute(statement, [received_at])
        if changes.streams.num_rows:
            self.streams = changes.streams
            self._name_incoming(changes.streams)
            self._cursor.execute(
                "INSERT INTO streams BY NAME SELECT * EXCLUDE (account) FROM incoming"
            )
        self._move(changes.watermarks, {"now": received_at})

    def write_predictions(self, predictions: pa.Table, received_at: datetime) -> None:
        """Write the predictions of a group."""
        received_at = self._stamp(received_at)
        if not predictions.num_rows:
            return
        self._name_incoming(predictions)
        shapes = [name for name in SHAPES if name in predictions.column_names]
        left_out = f" EXCLUDE ({', '.join(shapes)})" if shapes else ""
        self._cursor.execute(
            f"INSERT INTO predictions BY NAME SELECT *{left_out}, ? AS received_at FROM incoming",
            [received_at],
        )
        if shapes:
            self._cursor.execute(
                "INSERT INTO prediction_shapes BY NAME"
                f" SELECT device_id, spool_id, sequence, ? AS received_at, {', '.join(shapes)}"
                f" FROM incoming WHERE {' OR '.join(f'{name} IS NOT NULL' for name in shapes)}",
                [received_at],
            )

    def rejected(self, filter_: RejectedFilter, after: Rejected | None) -> Sequence[Rejected]:
        """Return the next batch of rejected predictions; empty at the end."""
        return find_rejected(self._cursor, filter_, after)

    def readmit(self, predictions: pa.Table, received_at: datetime) -> None:
        """Insert predictions that were rejected, and delete their rejected rows."""
        self.write_predictions(predictions, received_at)
        delete_rejected(self._cursor, predictions)

    def _stamp(self, now: datetime) -> datetime:
        """Return the time of this commit, the same for all its rows."""
        if self._received_at is None:
            self._received_at = self._clock.tick(now)
        return self._received_at

    def _move(self, watermarks: pa.Table, values: Mapping[str, datetime]) -> None:
        for row in watermarks.to_pylist():
            spool = SpoolKey(row["device_id"], row["spool_id"])
            before = self._read.get(spool, Watermark())
            self.moved[spool] = read_watermark(
                row["committed_through"],
                before.first_digest if before.through else row["first_digest"],
                row["last_digest"],
                row["generations"] or before.generations,
            )
        spools = list(self.moved)
        self._find([s for s in spools if s not in self._new and not self._spools.knows(s)])
        is_new = [spool in self._new for spool in spools]
        if any(is_new):
            self.added = [spool for spool in spools if spool in self._new]
            self.first_added = count_rows(self._cursor)
            self._name_incoming(watermarks.filter(pa.array(is_new)))
            self._cursor.execute(_ADD_SPOOLS, values)
        if old := [spool for spool in spools if spool not in self._new]:
            self._name_incoming(watermarks.filter(pa.array([not new for new in is_new])))
            self._update(self._spools.ranges(old), len(old), values)
            if watermarks.column("generations").null_count < watermarks.num_rows:
                for rows in self._spools.ranges(old):
                    self._cursor.execute(_SET_GENERATIONS, rows._asdict())

    def _update(self, ranges: Sequence[Range], expected: int, values: Mapping[str, Any]) -> None:
        """Update the watermarks in `incoming`, whose rows are in these ranges."""
        moved = 0
        for rows in ranges:
            query = self._cursor.execute(_MOVE_WATERMARKS, {**values, **rows._asdict()})
            ((count,),) = query.fetchall()
            moved += int(count)
        if moved != expected:  # the transaction is undone, and the index of rows discarded
            raise SightlineError(
                grpc.StatusCode.UNAVAILABLE,
                "STORE_UNAVAILABLE",
                f"{moved} of {expected} watermarks were in their expected rows",
                retry_after=1.0,
            )

    def _name_incoming(self, rows: pa.Table) -> None:
        """Register the rows as the table `incoming`, on this cursor only."""
        self._cursor.register("incoming", rows)
