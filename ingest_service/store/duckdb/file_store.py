"""The store in one DuckDB file, which this process has to itself.

The SQL is that of any DuckDB catalogue; only opening, closing and recovering are the file's own.
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
from ingest_service.store.duckdb.database_copy import Contents, CopyError, Progress, copy_database
from ingest_service.store.duckdb.files import FilesMovedError, LogMovedError
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
_PROBE_BYTES = 1 << 20
_REMEMBERED = 100_000
"""Openings of spools whose positions are kept in memory, about 300 bytes each."""


class DuckDBStore:
    """A `PredictionStore` in a DuckDB file. Use one transaction at a time, readers from any thread.

    After an error that DuckDB cannot go on from (a checkpoint that finds the disk full), the file
    is opened anew for the next transaction or reader.

    While the path does not lead to the file that is open, nothing is committed or read.

    Args:
        path: the file; made where it is missing, in a folder that exists.
        trust: see `open_database`.

    Raises:
        StoreOpenError: see `open_database`.
    """

    def __init__(self, path: Path, *, trust: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        """Held during each COMMIT that is not the writer's: with it, the log stands still."""
        root, self._files = open_database(path, trust=trust)
        try:
            self._clock = CommitClock(_last_commit(root, path))
        except StoreOpenError:
            self._files.close()
            raise
        self._root: duckdb.DuckDBPyConnection | None = root
        self._has_said_moved = False
        self.was_empty = not root.execute("SELECT 1 FROM watermarks LIMIT 1").fetchall()
        """True if the store was empty when it was opened."""
        self._positions: dict[SpoolKey, Watermark] = {}
        self._openings = 0  # in `_positions`
        self._spools = SpoolRows()

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
                self._forget_spools()  # a COMMIT that failed may have reached the disk
                with contextlib.suppress(duckdb.Error):  # nothing to undo: a COMMIT that failed
                    cursor.execute("ROLLBACK")
                raise
            self._remember(transaction)

    def reader(self) -> DuckDBReader:
        """Return a new reader."""
        with self._translated():
            # A position of a file that is gone would let a node delete what nobody has.
            self._files.check()
            return DuckDBReader(self._cursor(), self._translated)

    def maintenance(self) -> DuckDBMaintenance:
        """Return the maintenance of the store; only one may be in use at a time."""
        return DuckDBMaintenance(self._cursor, self._translated, self._committing)

    def check(self) -> None:
        """Raise SightlineError if the path does not lead to the file that is open."""
        with self._translated():
            self._files.check()

    def backup(self, target: Path, progress: Progress) -> Contents:
        """Copy all that is committed into a new file, as of one moment; from any thread.

        It copies what is open, though the file be deleted.

        Args:
            target: the new file, which must not be there.
            progress: see `copy_database`.

        Raises:
            SightlineError: the store cannot be read, or the file cannot be written.
        """
        with self._translated():
            cursor = self._cursor()
        try:  # an error of the copy is none of the store, which serves on
            with contextlib.closing(cursor):
                return copy_database(cursor, target, progress)
        except (CopyError, OSError, duckdb.Error) as error:
            logger.exception("the backup to %s failed", target)
            raise SightlineError(
                grpc.StatusCode.UNAVAILABLE,
                "BACKUP_FAILED",
                f"the backup failed, which needs room for a copy of the database in {target.parent}"
                f" on the service's machine: {str(error).strip()}",
            ) from error

    def seconds_ahead(self, now: datetime) -> float:
        """Return how far the last commit's time is ahead of the wall clock, s; 0: it is not."""
        return self._clock.seconds_ahead(now)

    def probe(self) -> None:
        """Commit as much as a busy device sends at once, and take it back.

        Raises:
            SightlineError: that cannot be done now.
        """
        with self._translated(), contextlib.closing(self._cursor()) as cursor:
            self._with_log(cursor, self._files.check_log)
            # A comment, for an UPDATE that leaves everything as it is writes nothing.
            cursor.execute(f"COMMENT ON TABLE schema_version IS '{' ' * _PROBE_BYTES}'")
            cursor.execute("COMMENT ON TABLE schema_version IS NULL")
            self._committed(cursor)

    def close(self) -> None:
        """Move the write-ahead log into the file and close it.

        Raises:
            SightlineError: the path does not lead to the file that is open; it is closed all the
                same.
        """
        with self._lock:
            root, self._root = self._root, None
        if root is None:
            return
        try:
            with self._translated():
                self._files.check()  # what somebody has put there must stay as it is
                _checkpoint(root, self._path)
                root.close()
                self._files.reopened()
        finally:
            root.close()
            self._files.close()

    def _remember(self, transaction: DuckDBTransaction) -> None:
        """Remember the positions that a transaction has committed."""
        for spool, watermark in transaction.moved.items():
            self._openings += _openings(watermark) - _openings(self._positions.get(spool))
        self._positions.update(transaction.moved)
        if self._openings > _REMEMBERED:
            self._positions, self._openings = {}, 0
            self._spools.forget_rows()
        self._spools.added(transaction.added, transaction.first_added)

    def _forget_spools(self) -> None:
        self._positions, self._openings, self._spools = {}, 0, SpoolRows()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._root is None:
                self._files.check()  # DuckDB would make an empty file
                self._root = reopen_database(self._path)
                self._files.reopened()
            return self._root.cursor()

    def _committed(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Take note of a commit.

        Raises:
            FilesMovedError: it is not in the file at the path: nobody must hear of it.
        """
        alone = self._committing.acquire(blocking=False)
        try:
            self._with_log(cursor, lambda: self._files.committed(alone=alone))
        finally:
            if alone:
                self._committing.release()

    def _with_log(self, cursor: duckdb.DuckDBPyConnection, work: Callable[[], None]) -> None:
        """Work with the log; one that somebody has taken away is replaced by a new one."""
        try:
            work()
        except LogMovedError as error:
            logger.warning("%s: what it held goes into the database, and a new log begins", error)
            self._files.set_log_aside()
            cursor.execute("CHECKPOINT")
            self._files.committed(alone=False)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn DuckDB's errors into SightlineErrors, and recovers from the fatal ones."""
        try:
            yield
        except duckdb.InterruptException as error:
            raise SightlineError(
                grpc.StatusCode.CANCELLED, "CANCELLED", "the query was interrupted"
            ) from error
        except FilesMovedError as error:
            self._say_moved(error)
            raise _moved() from error
        except (StoreOpenError, duckdb.Error) as error:
            logger.exception("the store failed")
            if isinstance(error, duckdb.FatalException):
                self._forget()
            raise _as_status(error) from error

    def _say_moved(self, error: FilesMovedError) -> None:
        if not self._has_said_moved:
            self._has_said_moved = True
            logger.error(
                "%s: nothing is committed or read. Put the file back where it was; or save what is"
                " open by `sightline backup --to FILE`, stop the service, and restore that",
                error,
            )

    def _forget(self) -> None:
        """Let go of the database, which DuckDB has declared unusable until it is reopened."""
        with self._lock:
            root, self._root = self._root, None
        if root is not None:
            root.close()


def _openings(watermark: Watermark | None) -> int:
    """Return what keeping a watermark in memory counts for."""
    return 0 if watermark is None else max(len(watermark.generations), 1)


def _last_commit(root: duckdb.DuckDBPyConnection, path: Path) -> int | None:
    """Return the time of the last commit that the file tells of, us since 1970."""
    try:
        ((last,),) = root.execute(_LAST_COMMIT).fetchall()
    except duckdb.Error as error:
        with contextlib.suppress(duckdb.Error):
            root.close()
        raise StoreOpenError(f"database: {path} cannot be used: {error}") from error
    return None if last is None else int(last)


def _checkpoint(root: duckdb.DuckDBPyConnection, path: Path) -> None:
    try:
        root.execute("CHECKPOINT")
    except duckdb.Error as error:  # nothing is lost: the next start reads the log
        logger.warning("no checkpoint of %s on closing: %s", path, error)


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
