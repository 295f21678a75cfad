"""The store in one DuckDB file, which this process has to itself.

The SQL is that of any DuckDB catalogue; only opening, closing and recovering are the file's own.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import grpc
import pyarrow as pa

from ingest_service import readmission
from ingest_service.commit_clock import CommitClock
from ingest_service.database_copy import Contents, CopyError, Progress, copy_database
from ingest_service.duckdb_files import FilesMovedError, LogMovedError
from ingest_service.duckdb_keeper import DuckDBKeeper
from ingest_service.duckdb_open import StoreOpenError, open_database, reopen_database
from ingest_service.duckdb_reader import WATERMARK, DuckDBReader, read_watermark
from ingest_service.spool_rows import Range, SpoolRows, count_rows
from ingest_service.store import STORE_MOVED, Changes, Spool, Watermark
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_PASSING = (
    duckdb.IOException,
    duckdb.TransactionException,
    duckdb.FatalException,
    duckdb.OutOfMemoryException,
    duckdb.ConnectionException,
)
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
"""  # noqa: S608 - names of ours
_MOVE_WATERMARKS = """
    UPDATE watermarks AS w SET
        committed_through = i.committed_through,
        duplicates = w.duplicates + i.duplicates,
        -- A header alone has made the row before there was a first prediction.
        first_digest = CASE WHEN w.committed_through = 0 THEN i.first_digest
            ELSE w.first_digest END,
        last_digest = i.last_digest,
        updated_at = $now
    FROM incoming AS i WHERE w.device_id = i.device_id AND w.spool_id = i.spool_id
        AND w.rowid BETWEEN $first AND $last
"""
_NOTE_GENERATIONS = """
    UPDATE watermarks AS w SET generations = i.generations
    FROM incoming AS i
    WHERE w.device_id = i.device_id AND w.spool_id = i.spool_id AND i.generations IS NOT NULL
        AND w.rowid BETWEEN $first AND $last
"""
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
"""Spools whose positions are kept in memory, about 300 bytes each."""


class DuckDBStore:
    """A `Store` in a DuckDB file. Use one transaction at a time, readers from any thread.

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
        """Whether nothing was in it when it was opened."""
        self._positions: dict[Spool, Watermark] = {}
        self._spools = SpoolRows()

    @contextlib.contextmanager
    def transaction(self) -> Iterator["DuckDBTransaction"]:
        """Opens a transaction: committed and durable when the block ends, undone if it raises."""
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
        """Returns a new reader."""
        with self._translated():
            # A position of a file that is gone would let a node delete what nobody has.
            self._files.check()
            return DuckDBReader(self._cursor(), self._translated)

    def keeper(self) -> DuckDBKeeper:
        """Returns a keeper; one at a time."""
        return DuckDBKeeper(self._cursor, self._translated, self._committing)

    def check(self) -> None:
        """Raises SightlineError if the path does not lead to the file that is open."""
        with self._translated():
            self._files.check()

    def backup(self, target: Path, progress: Progress) -> Contents:
        """Copies all that is committed into a new file, as of one moment; from any thread.

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
        """Commits as much as a busy device sends at once, and takes it back.

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
        """Moves the write-ahead log into the file and closes it.

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

    def _remember(self, transaction: "DuckDBTransaction") -> None:
        """Takes note of what a transaction has committed."""
        if len(self._positions) > _REMEMBERED:
            self._positions = {}
            self._spools.forget_rows()
        self._positions.update(transaction.moved)
        self._spools.added(transaction.added, transaction.first_added)

    def _forget_spools(self) -> None:
        self._positions, self._spools = {}, SpoolRows()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._root is None:
                self._files.check()  # DuckDB would make an empty file
                self._root = reopen_database(self._path)
                self._files.reopened()
            return self._root.cursor()

    def _committed(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Takes note of a commit.

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
        """Works with the log; one that somebody has taken away is replaced by a new one."""
        try:
            work()
        except LogMovedError as error:
            logger.warning("%s: what it held goes into the database, and a new log begins", error)
            self._files.set_log_aside()
            cursor.execute("CHECKPOINT")
            self._files.committed(alone=False)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns DuckDB's errors into SightlineErrors, and recovers from the fatal ones."""
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
        """Lets go of the database, which DuckDB has declared unusable until it is reopened."""
        with self._lock:
            root, self._root = self._root, None
        if root is not None:
            root.close()


class DuckDBTransaction:
    """A `Transaction` on a cursor of its own, which is closed after it.

    Args:
        cursor: its connection.
        known: positions of spools that have a row in `watermarks`, as of its beginning. The file
            has no other writer, so a group of known spools needs no query.
        spools: which spools have a row at all, and where.
        clock: gives the commit its time.

    Attributes:
        moved: positions that COMMIT makes the new ones.
        added: spools that COMMIT gives a row, in the order of their rows.
        first_added: number of the first such row.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        known: Mapping[Spool, Watermark],
        spools: SpoolRows,
        clock: CommitClock,
    ) -> None:
        self._cursor = cursor
        self._known = known
        self._spools = spools
        self._clock = clock
        self._received_at: datetime | None = None
        self._new: set[Spool] = set()
        self._read: dict[Spool, Watermark] = {}
        self.moved: dict[Spool, Watermark] = {}
        self.added: list[Spool] = []
        self.first_added = 0

    def watermarks(self, spools: Collection[Spool]) -> dict[Spool, Watermark]:
        """Returns what is committed of each spool."""
        positions = {spool: self._known.get(spool, Watermark()) for spool in spools}
        positions.update(self._find([spool for spool in positions if spool not in self._known]))
        self._read.update(positions)
        return positions

    def _find(self, spools: Sequence[Spool]) -> dict[Spool, Watermark]:
        """Returns the positions of those that have a row; notes the rows, and who has none."""
        if not spools:
            return {}
        missing = self._spools.missing(self._cursor, spools)
        positions: dict[Spool, Watermark] = {}
        if asked := [spool for spool in spools if spool not in missing]:
            self._name_incoming(pa.Table.from_pylist([spool._asdict() for spool in asked]))
            for row, device, spool, *mark in self._cursor.execute(_FIND_SPOOLS).fetchall():
                self._spools.learn(Spool(device, spool), row)
                positions[Spool(device, spool)] = read_watermark(*mark)
        self._new.update(spool for spool in spools if spool not in positions)
        return positions

    def write_books(self, changes: Changes, received_at: datetime) -> None:
        """Writes everything of a group but its predictions."""
        received_at = self._stamp(received_at)
        for name, statement in _APPENDED.items():
            rows = getattr(changes, name)
            if rows.num_rows:
                self._name_incoming(rows)
                self._cursor.execute(statement, [received_at])
        if changes.streams.num_rows:
            self._name_incoming(changes.streams)
            self._cursor.execute("INSERT INTO streams BY NAME SELECT * FROM incoming")
        self._move(changes.watermarks, {"now": received_at})

    def write_predictions(self, predictions: pa.Table, received_at: datetime) -> None:
        """Writes the predictions of a group."""
        received_at = self._stamp(received_at)
        if predictions.num_rows:
            self._name_incoming(predictions)
            self._cursor.execute(
                "INSERT INTO predictions BY NAME SELECT *, ? AS received_at FROM incoming",
                [received_at],
            )

    def rejected(
        self, which: readmission.Which, after: readmission.Rejected | None
    ) -> Sequence[readmission.Rejected]:
        """Return the next rejected predictions; none are left when there are none."""
        return readmission.find(self._cursor, which, after)

    def readmit(self, predictions: pa.Table, received_at: datetime) -> None:
        """Make rejected predictions accepted ones."""
        self.write_predictions(predictions, received_at)
        readmission.move(self._cursor, predictions)

    def _stamp(self, now: datetime) -> datetime:
        """Returns the time of this commit, the same for all that it writes."""
        if self._received_at is None:
            self._received_at = self._clock.tick(now)
        return self._received_at

    def _move(self, watermarks: pa.Table, values: Mapping[str, datetime]) -> None:
        for row in watermarks.to_pylist():
            spool = Spool(row["device_id"], row["spool_id"])
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
                for each in self._spools.ranges(old):
                    self._cursor.execute(_NOTE_GENERATIONS, each._asdict())

    def _update(self, ranges: Sequence[Range], expected: int, values: Mapping[str, Any]) -> None:
        """Moves the watermarks named `incoming`, which are in these ranges of rows."""
        moved = 0
        for each in ranges:
            found = self._cursor.execute(_MOVE_WATERMARKS, {**values, **each._asdict()}).fetchall()
            moved += int(found[0][0])
        if moved != expected:  # all is undone, and what is known of rows forgotten
            raise SightlineError(
                grpc.StatusCode.UNAVAILABLE,
                "STORE_UNAVAILABLE",
                f"{moved} of {expected} watermarks are in their rows",
                retry_after=1.0,
            )

    def _name_incoming(self, rows: pa.Table) -> None:
        """Names the rows `incoming` for the statements that follow, on this cursor alone."""
        self._cursor.register("incoming", rows)


def _last_commit(root: duckdb.DuckDBPyConnection, path: Path) -> int | None:
    """Returns the time of the last commit that the file tells of, us since 1970."""
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
