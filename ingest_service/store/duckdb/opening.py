"""Opening of a database file, with checks that it is sound and the one the service left."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb

from ingest_service.store.duckdb.commit_record import (
    CommitRecord,
    CommitRecordFile,
    CommitRecordHeldError,
    commit_record_path,
    log_path,
)
from ingest_service.store.duckdb.database_copy import FORMAT, CopyError, copy_database, unbalanced
from ingest_service.store.duckdb.file_format import HEADER_BYTES, parse_database, parse_log
from ingest_service.store.duckdb.files import StoreFiles
from ingest_service.store.duckdb.log_tail import DamagedLogError, set_tail_aside
from ingest_service.store.duckdb.migrations import NewerSchemaError, migrate
from ingest_service.store.duckdb.verdict import (
    NAMES_ITS_LOGS,
    FileState,
    confirmed_bytes,
    log_mismatch,
    record_mismatch,
)
from servicekit import resources
from servicekit.durable import sync_file

logger = logging.getLogger(__name__)

_CONFIG = {
    # DuckDB must not fetch code from the network or read Python variables of its callers.
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    # With more threads, the insert of one group is split among them and takes 50 % more CPU time.
    "threads": "1",
    # Each checkpoint rewrites the last, half-full row group of every table. With the default of
    # 16 MiB (80 000 predictions), checkpoints would be half of all the work. But commits wait for a
    # checkpoint: with 256 MiB for more than a second on two cores.
    "checkpoint_threshold": "128MiB",
    **FORMAT,
}
_NEW = ".new-format"
_PUT_BACK = "put back a backup (`sightline restore`), or start once with --trust-database"
_MISSING = "put it back, or a backup (`sightline restore`)"
_PROGRESS_SHARE = 0.1


class StoreOpenError(Exception):
    """The store cannot be opened. The message is one sentence for users."""


class OpenDatabase(NamedTuple):
    """An open database and its files."""

    connection: duckdb.DuckDBPyConnection
    files: StoreFiles


def open_database(path: Path, *, trust: bool = False) -> OpenDatabase:
    """Open a store's database; create it if it is missing, and migrate it to the newest schema.

    Args:
        path: the file, in a folder that exists.
        trust: True: accept, with a warning in the log, a database that is not the one that the
            service left, or whose rows do not match its watermarks.

    Raises:
        StoreOpenError: the file is in use, cannot be read or written, is no DuckDB file, is
            damaged, was written by a newer Sightline, or is not the one that the service left; the
            files are unchanged.
    """
    record_file = _open_record_file(path)
    try:
        with _as_open_error(path):
            record = record_file.read()
            state = read_file_state(path)
            _refuse_mismatch(path, state, record, trust)
            connection = _connect_repaired(path, confirmed_bytes(state, record), trust)
            try:
                is_sound = _bring_up_to_date(path, connection, trust)
                if is_sound and state.database and state.database.version < NAMES_ITS_LOGS:
                    connection = _bring_to_new_format(path, connection)
                return OpenDatabase(connection, StoreFiles(path, record_file))
            except BaseException:
                with contextlib.suppress(duckdb.Error):
                    connection.close()
                raise
    except BaseException:
        record_file.close()
        raise


def reopen_database(path: Path) -> duckdb.DuckDBPyConnection:
    """Reopen the database that this process had open, and whose commit record it still holds.

    Raises:
        StoreOpenError: it cannot be opened.
    """
    with _as_open_error(path):
        return _connect(path)


def read_file_state(path: Path) -> FileState:
    """Return the state of a store's files, as read from their headers.

    Raises:
        OSError: they cannot be read.
    """
    database, log = None, log_path(path)
    if path.exists():
        with path.open("rb") as file:
            database = parse_database(file.read(HEADER_BYTES))
    if not log.exists():
        return FileState(path.exists(), database, None, 0)
    with log.open("rb") as file:
        return FileState(path.exists(), database, parse_log(file.read(256)), log.stat().st_size)


def _open_record_file(path: Path) -> CommitRecordFile:
    try:
        return CommitRecordFile(path)
    except CommitRecordHeldError as error:
        raise StoreOpenError(
            f"database: {path} cannot be opened: another process has it open (PID {error})"
        ) from error
    except OSError as error:
        mark = commit_record_path(path)
        cause = f"{mark}: {error.strerror}"
        if not mark.parent.is_dir():
            cause = f"{mark.parent} is no folder: create it, or choose another path"
        raise StoreOpenError(f"database: {path} cannot be opened: {cause}") from error


def _refuse_mismatch(
    path: Path, state: FileState, record: CommitRecord | None, trust: bool
) -> None:
    """Raise StoreOpenError if the files do not match each other or the commit record."""
    log = log_path(path)
    if state.log_bytes and not state.exists:  # DuckDB would delete the log
        raise StoreOpenError(f"database: {path} is gone, and its log {log} is not: {_MISSING}")
    if why := log_mismatch(state):
        raise StoreOpenError(f"database: {path} cannot be used with the log {log}: {why}")
    if why := record_mismatch(state, record):
        if not trust:
            raise StoreOpenError(f"database: {path} cannot be used: {why}")
        logger.warning("database: %s is used all the same (--trust-database): %s", path, why)


def _connect_repaired(path: Path, confirmed: int | None, trust: bool) -> duckdb.DuckDBPyConnection:
    """Connect, after moving bytes that a power failure made unreadable out of the log."""
    _set_tails_aside(path, confirmed, trust, verify=False)
    if log_path(path).exists():  # a killed process may have written it without a sync
        sync_file(log_path(path))
    try:
        return _connect(path)
    except duckdb.IOException as error:
        if "Conflicting lock" in str(error) or not _set_tails_aside(
            path, confirmed, trust, verify=True
        ):
            raise
    return _connect(path)


def _set_tails_aside(path: Path, confirmed: int | None, trust: bool, *, verify: bool) -> bool:
    aside = set_tail_aside(log_path(path), confirmed, verify=verify, trust=trust)
    # Commits write to this file while a checkpoint runs; it becomes the log afterwards.
    log = log_path(path)
    beside = log.with_name(f"{log.name}.checkpoint")
    return bool(set_tail_aside(beside, None, verify=verify, trust=trust) or aside)


def _memory() -> dict[str, str]:
    """Return DuckDB's memory limit, where a control group limits this process; else its default.

    DuckDB's default is 80 % of the machine's memory or of the group's own limit, which leaves too
    little for the messages in flight.
    """
    limit = resources.memory_limit()
    return {} if limit is None else {"memory_limit": f"{limit // 2 // 1024}KiB"}


def _connect(path: Path) -> duckdb.DuckDBPyConnection:
    # DuckDB would keep the log beside a link whose target does not exist yet.
    connection = duckdb.connect(str(path.resolve()), config={**_CONFIG, **_memory()})
    # A refused database must stay unchanged; the others are checkpointed by `DuckDBStore.close`.
    connection.execute("PRAGMA disable_checkpoint_on_shutdown")
    return connection


def _bring_up_to_date(path: Path, connection: duckdb.DuckDBPyConnection, trust: bool) -> bool:
    """Migrate the schema; return True if the rows match the watermarks.

    Raises:
        StoreOpenError: they do not match, and `trust` is False.
    """
    spool = unbalanced(connection) if _has_ledger(connection) else None
    if spool is not None:
        why = (
            f"its books do not balance: the rows of spool {spool[1]} of device {spool[0]} are not"
            " those that were committed"
        )
        if not trust:
            raise StoreOpenError(f"database: {path} cannot be used: {why}: {_PUT_BACK}")
        logger.error("database: %s is used all the same (--trust-database): %s", path, why)
    migrate(connection)
    return spool is None


def _has_ledger(connection: duckdb.DuckDBPyConnection) -> bool:
    views = connection.execute("SELECT 1 FROM duckdb_views() WHERE view_name = 'ledger'")
    return views.fetchone() is not None


def _bring_to_new_format(
    path: Path, connection: duckdb.DuckDBPyConnection
) -> duckdb.DuckDBPyConnection:
    """Replace the database by a copy in the format whose logs name their database; connect to it.

    The old file stays complete, with an empty log, until the new file, verified and durable, takes
    its name atomically.
    """
    file = path.resolve()  # a link to another disk stays one
    new = file.with_name(f"{file.name}{_NEW}")
    for leftover in (new, new.with_name(f"{new.name}.wal")):  # of an interrupted start
        leftover.unlink(missing_ok=True)
    logger.warning(
        "upgrading %s to a newer format: this happens once and needs its size again on the disk",
        path,
    )
    connection.execute("CHECKPOINT")
    copy_database(connection, new, _LoggedProgress(path))
    connection.close()
    log_path(path).unlink(missing_ok=True)  # empty since the checkpoint
    sync_file(file.parent)
    new.replace(file)
    sync_file(file.parent)
    return _connect(path)


class _LoggedProgress:
    """A progress callback that logs every tenth of a copy."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._logged = 0.0

    def __call__(self, done: int, total: int) -> None:
        share = done / total if total else 1.0
        if share >= self._logged + _PROGRESS_SHARE:
            self._logged = share
            logger.info("upgrading %s to a newer format: %d %%", self._path, 100 * share)


@contextlib.contextmanager
def _as_open_error(path: Path) -> Iterator[None]:
    """Translate errors into StoreOpenError."""
    try:
        yield
    except DamagedLogError as error:
        raise StoreOpenError(f"database: {path} cannot be used: {error}: {_PUT_BACK}") from error
    except (duckdb.Error, NewerSchemaError, CopyError) as error:
        raise StoreOpenError(f"database: {path} cannot be used: {_reason(error)}") from error
    except OSError as error:
        raise StoreOpenError(f"database: {path} cannot be opened: {error}") from error


def _reason(error: Exception) -> str:
    text = str(error)
    if "Conflicting lock" in text:
        holder = text.partition("Conflicting lock is held in ")[2].partition(". See")[0]
        return f"another process has it open ({holder})"
    if "newer version of DuckDB" in text:
        return (
            f"a newer DuckDB wrote it, and this one is {duckdb.__version__}: use the Sightline that"
            " wrote it, or another file"
        )
    return text.strip()
