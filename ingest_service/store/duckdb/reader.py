"""Queries of a DuckDB store: watermarks, statistics and pages."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import duckdb

from ingest_service.store.duckdb.confidence import read_confidences
from ingest_service.store.duckdb.filters import where, where_sums
from ingest_service.store.duckdb.fleet import read_devices
from ingest_service.store.duckdb.frame import read_frame
from ingest_service.store.duckdb.last_streams import LastStreams
from ingest_service.store.duckdb.ledger_read import read_ledger
from ingest_service.store.duckdb.log_tables import DuckDBLogTables
from ingest_service.store.duckdb.losses import find_sequence, read_gaps, read_rejections
from ingest_service.store.duckdb.model_versions import read_model_versions
from ingest_service.store.duckdb.news import at_positions, head, is_deleted_after, read_news
from ingest_service.store.duckdb.read_plan import within
from ingest_service.store.duckdb.series import read_series
from ingest_service.store.duckdb.stats import read_stats
from ingest_service.store.duckdb.stats_details import read_details
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.figures import Confidences, FrameCounts, Hours, Series, Versions
from ingest_service.store.protocol import (
    Filter,
    Generation,
    News,
    Position,
    SpoolKey,
    Stats,
    StoredPrediction,
    Watermark,
)
from ingest_service.store.record_types import (
    Absence,
    DeviceRecord,
    FleetQuery,
    GapRecord,
    LedgerRecord,
    LossFilter,
    Place,
    RejectedRecord,
    StoredAt,
)

_COLUMNS = """
    epoch_us(received_at), device_id, spool_id, sequence,
    clock_offset_seconds, image_id, image_width, image_height, model_name, model_version,
    source, cloud_reason, epoch_us(captured_at), inference_seconds, detections,
    defect_detected, labels, trace_id
"""
_NEWEST_FIRST = "received_at DESC, device_id DESC, spool_id DESC, sequence DESC"
_SHAPES = "FROM prediction_shapes WHERE received_at >= make_timestamptz({oldest})"
_HAS_SHAPES = f"SELECT 1 {_SHAPES} LIMIT 1"
_PAGE = f"""
    SELECT {_COLUMNS} FROM predictions WHERE {{where}} ORDER BY {_NEWEST_FIRST} LIMIT $size
"""
# The rows of the page come first, so that shapes are searched for them only.
_PAGE_WITH_SHAPES = f"""
    WITH page AS MATERIALIZED (
        SELECT * FROM predictions WHERE {{where}} ORDER BY {_NEWEST_FIRST} LIMIT $size
    ), shapes AS (
        SELECT * {_SHAPES}
    )
    SELECT {_COLUMNS}, rotated_boxes, keypoints, masks
    FROM page LEFT JOIN shapes USING (received_at, device_id, spool_id, sequence)
    ORDER BY {_NEWEST_FIRST}
"""
_AFTER = """
    received_at <= make_timestamptz($received_us)
    AND (received_at, device_id, spool_id, sequence)
        < (make_timestamptz($received_us), $after_device, $after_spool, $after_sequence)
"""
_CUT = """
    SELECT epoch_us(received_at) FROM predictions WHERE {where}
    ORDER BY received_at DESC LIMIT $size
"""
_BLOCKS = """
    SELECT epoch_us(after), epoch_us(through)
    FROM blocks SEMI JOIN (SELECT through FROM rollups WHERE {where}) USING (through)
    ORDER BY through DESC
"""
_SEALED = "SELECT epoch_us(max(through)) FROM blocks"
WATERMARK = "committed_through, first_digest, last_digest, generations"
"""Columns of the table `watermarks`, for `read_watermark`."""
_FIRST_BLOCKS = 4
"""Blocks in the first query for a page; each further query searches four times as many."""


def read_watermark(
    through: int,
    first_digest: bytes | None,
    last_digest: bytes | None,
    generations: str | Sequence[Generation] | None,
) -> Watermark:
    """Return the watermark from the values of the columns in `WATERMARK`."""
    if isinstance(generations, str):
        generations = [Generation(*run) for run in json.loads(generations)]
    if not generations and through:
        generations = [Generation("", 0)]
    return Watermark(through, first_digest, last_digest, tuple(generations or ()))


class DuckDBReader:
    """A `Reader` on a cursor of its own. Its first query of statistics or pages fixes the snapshot.

    Args:
        cursor: its connection; closed with the reader.
        translated: context manager that turns DuckDB's errors into SightlineErrors.
        streams: the last streams that are not in the table `devices` yet.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        translated: Callable[[], AbstractContextManager[None]],
        streams: LastStreams,
    ) -> None:
        self._cursor = cursor
        self._streams = streams
        self._translated = translated
        self._interrupted = threading.Event()
        self._begun = False

    def watermark(self, spool: SpoolKey) -> Watermark:
        """Return the watermark of a spool."""
        with self._translated():
            rows = self._rows(
                f"SELECT {WATERMARK} FROM watermarks"
                " WHERE device_id = $device_id AND spool_id = $spool_id",
                spool._asdict(),
            )
        return read_watermark(*rows[0]) if rows else Watermark()

    def stats(self, filter_: Filter, *, details: bool = False) -> Stats:
        """Return statistics, all of one snapshot."""
        with self._translated():
            self._begin()
            stats = read_stats(self._rows, filter_)
            return replace(stats, details=read_details(self._rows, filter_)) if details else stats

    def series(self, filter_: Filter, bucket_us: int) -> Series:
        """Return counts by buckets of time."""
        with self._translated():
            self._begin()
            return read_series(self._rows, filter_, bucket_us)

    def frame(
        self, filter_: Filter, columns: int, rows: int, *, at_most: int = 10**6
    ) -> FrameCounts:
        """Return detections by cell of a grid over the frame."""
        with self._translated():
            self._begin()
            return read_frame(self._rows, filter_, columns, rows, at_most)

    def confidences(self, filter_: Filter, reference: Hours) -> Confidences:
        """Return detections by confidence, now and in a reference."""
        with self._translated():
            self._begin()
            return read_confidences(self._rows, filter_, reference)

    def model_versions(self, filter_: Filter) -> Versions:
        """Return what each version of a model has answered."""
        with self._translated():
            self._begin()
            return read_model_versions(self._rows, filter_)

    def page(self, filter_: Filter, size: int, after: Position | None) -> list[StoredPrediction]:
        """Return at most `size` predictions, newest commit first."""
        condition, values = where(filter_)
        values["size"] = size
        if after is not None:
            condition = f"{condition} AND {_AFTER}"
            values |= {
                "received_us": after.received_us,
                "after_device": after.device_id,
                "after_spool": after.spool_id,
                "after_sequence": after.sequence,
            }
        with self._translated():
            self._begin()
            # Whole rows are read only from this commit on: sorting them costs more than finding it.
            oldest = self._oldest_of_page(filter_, condition, values)
            if oldest is None:
                return []
            return self._whole_rows(condition, values, oldest)

    def at(self, positions: Sequence[Position]) -> list[StoredPrediction]:
        """Return the predictions at these positions, oldest first, without deleted ones."""
        condition, values = at_positions(positions)
        with self._translated():
            self._begin()
            rows = self._whole_rows(condition, values, positions[0].received_us)
        return rows[::-1]

    def _whole_rows(
        self, condition: str, values: dict[str, Any], oldest: int
    ) -> list[StoredPrediction]:
        """Return whole rows of commits from a time on, us, newest first."""
        condition = f"{condition} AND received_at >= make_timestamptz({oldest})"
        # Many stores have no shapes, and planning the join takes a good part of a page.
        has_shapes = self._rows(_HAS_SHAPES.format(oldest=oldest), {})
        page = _PAGE_WITH_SHAPES if has_shapes else _PAGE
        rows = self._rows(page.format(where=condition, oldest=oldest), values)
        return [StoredPrediction(Position(*row[:4]), *row[4:]) for row in rows]

    def _oldest_of_page(
        self, filter_: Filter, condition: str, values: dict[str, Any]
    ) -> int | None:
        """Return the time of the oldest commit on the page, us; None: nothing matches."""
        times: list[int] = []
        size: int = values["size"]
        for commits in self._newest_first(filter_, values):
            rows = self._rows(_CUT.format(where=f"{condition} AND {commits}"), values)
            times += [row[0] for row in rows]
            if len(times) >= size:
                return times[size - 1]
        return times[-1] if times else None

    def _newest_first(self, filter_: Filter, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield conditions for the commits that may contain matches, newest first."""
        ((sealed,),) = self._rows(_SEALED, {})
        if sealed is None:
            yield "true"
            return
        if values.get("received_us", sealed + 1) > sealed:
            yield f"received_at > make_timestamptz({sealed})"
        condition, parameters = where_sums(filter_)
        newer = values.get("received_us", sealed)
        rows = self._rows(_BLOCKS.format(where=condition), parameters)
        blocks = [(after, through) for after, through in rows if after < newer]
        at, count = 0, _FIRST_BLOCKS
        while chosen := blocks[at : at + count]:
            yield within("received_at", (chosen[-1][0], chosen[0][1]))
            at, count = at + count, count * 4

    def devices(self, query: FleetQuery, size: int, after: Place | None) -> list[DeviceRecord]:
        """Return at most `size` devices in the order of their ids."""
        # Before the snapshot: what is written to the table meanwhile must not be missed.
        waiting = self._streams.waiting()
        with self._snapshot() as run:
            return read_devices(run, query, size, after, waiting)

    def ledger(
        self, device_ids: Sequence[str], size: int, after: Place | None
    ) -> tuple[Sequence[LedgerRecord], LedgerRecord]:
        """Return the accounts of at most `size` spools, last commit first, and that of all."""
        with self._snapshot() as run:
            return read_ledger(run, device_ids, size, after)

    def gaps(self, filter_: LossFilter, size: int, after: Place | None) -> list[GapRecord]:
        """Return at most `size` gaps, newest commit first."""
        with self._snapshot() as run:
            return read_gaps(run, filter_, size, after)

    def rejections(
        self, filter_: LossFilter, size: int, after: Place | None
    ) -> list[RejectedRecord]:
        """Return at most `size` rejected predictions, newest commit first."""
        with self._snapshot() as run:
            return read_rejections(run, filter_, size, after)

    def find(
        self, spool: tuple[str, str], sequence: int
    ) -> StoredAt | RejectedRecord | GapRecord | Absence:
        """Return what became of one sequence."""
        with self._snapshot() as run:
            return find_sequence(run, *spool, sequence)

    def head(self) -> Position:
        """Return the position of the end of the last commit."""
        with self._translated():
            self._begin()
            return head(self._rows)

    def is_deleted_after(self, position: Position) -> bool:
        """Return True if retention may have deleted predictions after a position."""
        with self._translated():
            self._begin()
            return is_deleted_after(self._rows, position)

    def news(self, filter_: Filter, after: Position, keep: int) -> News:
        """Return what was committed after a position."""
        with self._translated():
            self._begin()
            return read_news(self._rows, filter_, after, keep)

    def log_tables(self) -> DuckDBLogTables:
        """Return the tables of the snapshot, for SQL queries of callers."""
        with self._translated():
            self._begin()
        return DuckDBLogTables(self._execute, self._translated)

    def interrupt(self) -> None:
        """Make the current query and each later one fail soon. Safe from any thread."""
        self._interrupted.set()
        with contextlib.suppress(duckdb.ConnectionException):  # closed
            self._cursor.interrupt()

    def close(self) -> None:
        """Close the cursor and its transaction."""
        self._cursor.close()

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[RunQuery]:
        """Yield what runs queries on the reader's snapshot; its errors become SightlineErrors."""
        with self._translated():
            self._begin()
            yield self._rows

    def _begin(self) -> None:
        """Begin a transaction, so that all later queries see one snapshot."""
        if not self._begun:
            self._cursor.execute("BEGIN")
            self._begun = True

    def _rows(self, query: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._execute(query, values).fetchall()
        return rows

    def _execute(
        self, query: str, values: Mapping[str, Any] | None = None
    ) -> duckdb.DuckDBPyConnection:
        if self._interrupted.is_set():
            raise duckdb.InterruptException("interrupted before it began")
        return self._cursor.execute(query, values)
