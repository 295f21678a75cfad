"""Maintenance of a DuckDB store beside its writer: rollups, retention and exports."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import duckdb

from ingest_service.store.duckdb import ledger, parquet_export, retention, rollups, totals
from ingest_service.store.duckdb.last_streams import WRITE_SECONDS, LastStreams, write_streams
from ingest_service.store.protocol import LedgerCheck
from ingest_service.store.retention_clock import ClockReading, ClockRecord

_STEPS = (retention.expire_rejected, retention.expire_streams)


class DuckDBMaintenance:
    """An implementation of `Maintenance`. Each step is a transaction of its own.

    Args:
        cursor: opens a connection.
        translated: context manager that turns DuckDB's errors into SightlineErrors.
        committing: held during each COMMIT.
        streams: the last streams to write.
    """

    def __init__(
        self,
        cursor: Callable[[], duckdb.DuckDBPyConnection],
        translated: Callable[[], AbstractContextManager[None]],
        committing: threading.Lock,
        streams: LastStreams,
    ) -> None:
        self._cursor = cursor
        self._streams = streams
        self._wrote_streams = -WRITE_SECONDS
        self._translated = translated
        self._committing = committing
        self._running: duckdb.DuckDBPyConnection | None = None
        self._interrupted = threading.Event()
        self._open = _OpenBlock()
        self._all_have_confidences = False

    def update_rollups(self, now: datetime, *, everything: bool = False) -> None:
        """Close the blocks that are full or old enough, merge small ones, write last streams.

        After an upgrade each call also sums up one block again, if its rollups lack columns.
        """
        with self._transaction() as cursor:
            blocks = rollups.open_blocks(
                cursor, lambda first: self._open.age(first, _us(now)), everything=everything
            )
        for block in blocks:
            with self._transaction() as cursor:
                rollups.close_block(cursor, block)
            self._merge()
        if blocks:
            self._add_up_totals()
        if not self._all_have_confidences:
            with self._transaction() as cursor:
                self._all_have_confidences = not rollups.sum_up_again(cursor)
        self._write_streams(everything)

    def expire(self, before: datetime, *, exported_only: bool) -> int:
        """Delete what was committed before a time; return the number of predictions."""
        total = 0
        while count := self._expire_block(_us(before), exported_only):
            total += count
        if total:
            self._add_up_totals()
        for step in _STEPS:
            while self._step(step, _us(before)):
                pass
        return total

    def expirable(self, before: datetime, *, exported_only: bool) -> int:
        """Return how many predictions `expire` would delete."""
        with self._transaction() as cursor:
            return retention.expirable(cursor, _us(before), exported_only)

    def read_clock(self, judge: Callable[[ClockRecord | None], ClockReading]) -> ClockReading:
        """Pass the clock's record to `judge`, store the new record, and return the result."""
        with self._transaction() as cursor:
            reading = judge(retention.read_clock_record(cursor))
            retention.write_clock_record(cursor, reading.record)
            return reading

    def check_ledger(self) -> LedgerCheck:
        """Compare what is stored of each device with its committed sequences, by the sums."""
        with self._transaction() as cursor:
            return ledger.check(cursor)

    def export(self, folder: Path, now: datetime) -> int:
        """Write every closed block that is not exported yet; return the number of files."""
        files = 0
        while True:
            with self._transaction() as cursor:
                run, again = parquet_export.begin_run(cursor, _us(now))
            if run is None:
                return files
            with self._transaction() as cursor:
                files += sum(1 for _ in parquet_export.write_run(cursor, folder, run, again=again))
            with self._transaction() as cursor:
                parquet_export.finish_run(cursor, run, _us(now))

    def interrupt(self) -> None:
        """Make the current step and each later one fail soon. Safe from any thread."""
        self._interrupted.set()
        running = self._running
        if running is not None:
            with contextlib.suppress(duckdb.ConnectionException):  # closed
                running.interrupt()

    def _merge(self) -> None:
        with self._transaction() as cursor:
            if blocks := rollups.mergeable(rollups.all_blocks(cursor)):
                rollups.merge_blocks(cursor, blocks)

    def _write_streams(self, everything: bool) -> None:
        """Write the last streams of the devices, unless that was done a moment ago."""
        rows = self._streams.waiting()
        if not rows or (time.monotonic() - self._wrote_streams < WRITE_SECONDS and not everything):
            return
        with self._transaction() as cursor:
            write_streams(cursor, rows)
        self._streams.written(rows)
        self._wrote_streams = time.monotonic()

    def _add_up_totals(self) -> None:
        with self._transaction() as cursor:
            totals.add_up(cursor)

    def _expire_block(self, before_us: int, exported_only: bool) -> int:
        with self._transaction() as cursor:
            return retention.expire_block(cursor, before_us, exported_only)

    def _step(self, step: Callable[[duckdb.DuckDBPyConnection, int], int], before_us: int) -> int:
        with self._transaction() as cursor:
            return step(cursor, before_us)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._translated(), contextlib.closing(self._cursor()) as cursor:
            self._running = cursor
            if self._interrupted.is_set():
                raise duckdb.InterruptException("interrupted before it began")
            cursor.execute("BEGIN")
            try:
                yield cursor
                with self._committing:
                    cursor.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(duckdb.Error):  # nothing to undo: a COMMIT that failed
                    cursor.execute("ROLLBACK")
                raise
            finally:
                self._running = None


class _OpenBlock:
    """The age of the oldest rows without rollups, also after the wall clock was set back.

    The wall clock alone would make them look younger than they are until it has caught up.
    """

    def __init__(self) -> None:
        self._first = 0
        self._seen = 0.0

    def age(self, first_us: int, now_us: int) -> int:
        """Return the age in us of the open rows, the first of which was committed at `first_us`."""
        if first_us != self._first:
            self._first, self._seen = first_us, time.monotonic()
        return max(now_us - first_us, round((time.monotonic() - self._seen) * 1e6))


def _us(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)
