"""The store in one DuckDB file, which no other process may open meanwhile.

The SQL would work with any DuckDB catalogue. Only opening, closing and recovery are specific to a
file.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import duckdb
import grpc

from ingest_service.store.duckdb.commit_clock import CommitClock
from ingest_service.store.duckdb.commit_record import log_path
from ingest_service.store.duckdb.database_copy import Contents, CopyError, Progress, copy_database
from ingest_service.store.duckdb.files import FilesMovedError, LogMovedError
from ingest_service.store.duckdb.last_streams import LastStreams, write_streams
from ingest_service.store.duckdb.maintenance import DuckDBMaintenance
from ingest_service.store.duckdb.opening import StoreOpenError, open_database, reopen_database
from ingest_service.store.duckdb.reader import DuckDBReader
from ingest_service.store.duckdb.spool_rows import SpoolRows
from ingest_service.store.duckdb.transaction import DuckDBTransaction
from ingest_service.store.protocol import STORE_MOVED, SpoolKey, Watermark
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_PASSING = (
    duckdb.IOException,
    duckdb.TransactionException,
    duckdb.FatalException,
    duckdb.OutOfMemoryException,
    duckdb.ConnectionException,
)
_LAST_COMMIT = """
    SELECT epoch_us(max(latest)) FROM (
        SELECT max(received_at) AS latest FROM predictions
        WHERE received_at > (SELECT coalesce(max(through), '-infinity') FROM blocks)
        UNION ALL SELECT max(through) FROM blocks
        UNION ALL SELECT max(through) FROM exports
    )
"""
_LATEST_DEVICES = """
    SELECT device_id, epoch_us(max(updated_at)) FROM watermarks
    GROUP BY device_id ORDER BY 2 DESC LIMIT ?
"""
_PROBE_BYTES = 1 << 20
_REMEMBERED = 100_000
"""Maximum number of generations whose watermarks are cached, about 300 bytes each."""


class DuckDBStore:
    """A `PredictionStore` in a DuckDB file. One transaction at a time; readers from any thread.

    After a fatal error of DuckDB, such as a full disk during a checkpoint, the file is reopened for
    the next transaction or reader.

    While the path does not lead to the open file, nothing is committed or read.

    Args:
        path: the file, created if it is missing; its folder must exist.
        trust: see `open_database`.

    Raises:
        StoreOpenError: see `open_database`.
    """

    def __init__(self, path: Path, *, trust: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        """Held during each COMMIT of maintenance: while it is held, the log does not grow."""
        root, self._files = open_database(path, trust=trust)
        try:
            self._clock = CommitClock(_last_commit(root, path))
        except StoreOpenError:
            self._files.close()
            raise
        self._root: duckdb.DuckDBPyConnection | None = root
        self._has_reported_move = False
        self.was_empty = not root.execute("SELECT 1 FROM watermarks LIMIT 1").fetchall()
        """True if the store was empty when it was opened."""
        self._positions: dict[SpoolKey, Watermark] = {}
        self._openings = 0  # in `_positions`
        self._spools = SpoolRows()
        self._streams = LastStreams()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[DuckDBTransaction]:
        """Open a transaction: committed and durable when the block ends, undone if it raises."""
        with self._translated(), contextlib.closing(self._cursor()) as cursor:
            self._with_log(cursor, self._files.check_log)
            cursor.execute("BEGIN")
            transaction = DuckDBTransaction(cursor, self._positions, self._spools, self._clock)
            try:
                yield transaction
                cursor.execute("COMMIT")
                self._committed(cursor)
            except BaseException:
                self._forget_spools()  # a failed COMMIT may have reached the disk
                with contextlib.suppress(
                    duckdb.Error
                ):  # after a failed COMMIT there is nothing to undo
                    cursor.execute("ROLLBACK")
                raise
            self._remember(transaction)

    def reader(self) -> DuckDBReader:
        """Return a new reader."""
        with self._translated():
            # A watermark from a deleted file would let a node delete its only copy.
            self._files.check()
            return DuckDBReader(self._cursor(), self._translated, self._streams)

    def maintenance(self) -> DuckDBMaintenance:
        """Return the maintenance of the store; only one may be in use at a time."""
        return DuckDBMaintenance(self._cursor, self._translated, self._committing, self._streams)

    def check(self) -> None:
        """Raise SightlineError if the path does not lead to the file that is open."""
        with self._translated():
            self._files.check()

    def backup(self, target: Path, progress: Progress) -> Contents:
        """Copy the database to a new file, as of one moment. Safe from any thread.

        The copy is made from the open file, even if that file was deleted.

        Args:
            target: the new file, which must not exist.
            progress: see `copy_database`.

        Raises:
            SightlineError: the store cannot be read, or the file cannot be written.
        """
        with self._translated():
            cursor = self._cursor()
        try:  # an error of the copy is not an error of the store
            with contextlib.closing(cursor):
                return copy_database(cursor, target, progress)
        except (CopyError, OSError, duckdb.Error) as error:
            logger.exception("the backup to %s failed", target)
            raise SightlineError(
                grpc.StatusCode.UNAVAILABLE,
                "BACKUP_FAILED",
                f"the backup failed: {str(error).strip()}; it needs space for a copy of the"
                f" database in {target.parent} on the service's machine",
            ) from error

    def seconds_ahead(self, now: datetime) -> float:
        """Return how far the last commit's time is ahead of the wall clock, s; 0 if it is not."""
        return self._clock.seconds_ahead(now)

    def latest_devices(self, limit: int) -> list[tuple[str, float]]:
        """Return the devices with the latest commits and their times, s since 1970."""
        with self._translated(), contextlib.closing(self._cursor()) as cursor:
            devices = cursor.execute(_LATEST_DEVICES, [limit]).fetchall()
        return [(device, at / 1e6) for device, at in devices]

    def sizes(self) -> dict[str, int]:
        """Return the bytes of the `database` and of its write-ahead `log`; 0: there is no file."""
        paths = {"database": self._path, "log": log_path(self._path)}
        return {file: _size(path) for file, path in paths.items()}

    def probe(self) -> None:
        """Commit a megabyte and undo it, to check that the store can be written.

        Raises:
            SightlineError: the store cannot be written now.
        """
        with self._translated(), contextlib.closing(self._cursor()) as cursor:
            self._with_log(cursor, self._files.check_log)
            # A comment, because an UPDATE without a change writes nothing.
            cursor.execute(f"COMMENT ON TABLE schema_version IS '{' ' * _PROBE_BYTES}'")
            cursor.execute("COMMENT ON TABLE schema_version IS NULL")
            self._committed(cursor)

    def close(self) -> None:
        """Move the write-ahead log into the file and close it.

        Raises:
            SightlineError: the path does not lead to the open file, which is closed nevertheless.
        """
        with self._lock:
            root, self._root = self._root, None
        if root is None:
            return
        try:
            with self._translated():
                self._files.check()  # a foreign file at the path must not be changed
                self._write_streams(root)
                _checkpoint(root, self._path)
                root.close()
                self._files.reopened()
        finally:
            root.close()
            self._files.close()

    def _write_streams(self, root: duckdb.DuckDBPyConnection) -> None:
        """Write the last streams that the maintenance has not written."""
        try:
            if rows := self._streams.waiting():
                write_streams(root, rows)
        except duckdb.Error as error:  # nothing of the log is lost
            logger.warning("the last streams of %d devices were not written: %s", len(rows), error)

    def _remember(self, transaction: DuckDBTransaction) -> None:
        """Cache the watermarks that a transaction has committed."""
        for spool, watermark in transaction.moved.items():
            self._openings += _openings(watermark) - _openings(self._positions.get(spool))
        self._positions.update(transaction.moved)
        if self._openings > _REMEMBERED:
            self._positions, self._openings = {}, 0
            self._spools.forget_rows()
        self._spools.added(transaction.added, transaction.first_added)
        self._streams.committed(transaction.streams)

    def _forget_spools(self) -> None:
        self._positions, self._openings, self._spools = {}, 0, SpoolRows()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._root is None:
                self._files.check()  # DuckDB would create an empty file
                self._root = reopen_database(self._path)
                self._files.reopened()
            return self._root.cursor()

    def _committed(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Check the files after a COMMIT, and update the commit record.

        Raises:
            FilesMovedError: the commit is not in the file at the path: do not acknowledge it.
        """
        alone = self._committing.acquire(blocking=False)
        try:
            self._with_log(cursor, lambda: self._files.committed(alone=alone))
        finally:
            if alone:
                self._committing.release()

    def _with_log(self, cursor: duckdb.DuckDBPyConnection, work: Callable[[], None]) -> None:
        """Call `work`; if the log was moved away, checkpoint so that DuckDB begins a new log."""
        try:
            work()
        except LogMovedError as error:
            logger.warning(
                "%s: its content is written to the database, and a new log begins", error
            )
            self._files.set_log_aside()
            cursor.execute("CHECKPOINT")
            self._files.committed(alone=False)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate DuckDB's errors into SightlineErrors; after a fatal one, close the database."""
        try:
            yield
        except duckdb.InterruptException as error:
            raise SightlineError(
                grpc.StatusCode.CANCELLED, "CANCELLED", "the query was interrupted"
            ) from error
        except FilesMovedError as error:
            self._report_move(error)
            raise _moved() from error
        except (StoreOpenError, duckdb.Error) as error:
            logger.exception("the store failed")
            if isinstance(error, duckdb.FatalException):
                self._forget()
            raise _as_status(error) from error

    def _report_move(self, error: FilesMovedError) -> None:
        if not self._has_reported_move:
            self._has_reported_move = True
            logger.error(
                "%s: nothing is committed or read. Move the file back to its path; or save the open"
                " file by `sightline backup --to FILE`, stop the service, and restore the backup",
                error,
            )

    def _forget(self) -> None:
        """Close the database, which is unusable after a fatal error until it is reopened."""
        with self._lock:
            root, self._root = self._root, None
        if root is not None:
            root.close()


def _openings(watermark: Watermark | None) -> int:
    """Return how many generations a cached watermark counts for, >= 1; 0: it is not cached."""
    return 0 if watermark is None else max(len(watermark.generations), 1)


def _last_commit(root: duckdb.DuckDBPyConnection, path: Path) -> int | None:
    """Return the time of the last commit in the file, us since 1970; None: there is none."""
    try:
        ((last,),) = root.execute(_LAST_COMMIT).fetchall()
    except duckdb.Error as error:
        with contextlib.suppress(duckdb.Error):
            root.close()
        raise StoreOpenError(f"database: {path} cannot be used: {error}") from error
    return None if last is None else int(last)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _checkpoint(root: duckdb.DuckDBPyConnection, path: Path) -> None:
    try:
        root.execute("CHECKPOINT")
    except duckdb.Error as error:  # nothing is lost: the next start reads the log
        logger.warning("the checkpoint of %s on closing failed: %s", path, error)


def _moved() -> SightlineError:
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE,
        STORE_MOVED,
        "the server's database file was moved, deleted or replaced; its log says more",
        retry_after=1.0,
    )


def _as_status(error: Exception) -> SightlineError:
    if isinstance(error, (StoreOpenError, *_PASSING)):
        return SightlineError(
            grpc.StatusCode.UNAVAILABLE,
            "STORE_UNAVAILABLE",
            "the store cannot be written or read for now",
            retry_after=1.0,
        )
    return SightlineError(
        grpc.StatusCode.INTERNAL, "STORE_FAILED", "the store failed; the server's log says how"
    )
