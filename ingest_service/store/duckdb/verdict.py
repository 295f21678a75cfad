"""Checks that a store's files belong together and are the ones that the service left. Pure."""

from dataclasses import dataclass

from ingest_service.store.duckdb.commit_record import CommitRecord
from ingest_service.store.duckdb.file_format import DatabaseHeader, LogHeader

NAMES_ITS_LOGS = 67
"""First format version in which a log names its database and checkpoint."""
_PUT_BACK = (
    "put back the database and its log of the same moment, or a backup by `sightline restore`"
)
_TRUST = "; to go on with what is here, start once with --trust-database"


@dataclass(frozen=True, slots=True)
class FileState:
    """The state of a store's files before it is opened."""

    exists: bool
    """True if there is a database file."""
    database: DatabaseHeader | None
    """None: there is no file, or it is no database."""
    log: LogHeader | None
    """None: there is no log, or its header cannot be read."""
    log_bytes: int
    """0: there is no log, or an empty one."""


def log_mismatch(state: FileState) -> str | None:
    """Return why the log does not belong to the database, as one clause; None: it may.

    A log that follows the previous checkpoint was left by a crash right after a checkpoint. DuckDB
    itself checks such a log, and refuses it if it does not fit.
    """
    database, log = state.database, state.log
    if database is None or log is None or database.version < NAMES_ITS_LOGS:
        return None
    if log.identifier is None:
        return f"its log was written before the database was brought to a newer format: {_ASIDE}"
    if log.identifier != database.identifier:
        return f"its log belongs to another database: {_ASIDE}"
    if log.iteration > database.iteration:
        return (
            f"the database is older than its log (it has had {database.iteration} checkpoints, the"
            f" log follows checkpoint {log.iteration}): {_PUT_BACK}"
        )
    if log.iteration < database.iteration - 1:
        return (
            f"its log is older than the database (it follows checkpoint {log.iteration} of"
            f" {database.iteration}): {_ASIDE}"
        )
    return None


_ASIDE = f"{_PUT_BACK}, or move the log away if you know that it is not needed"


def record_mismatch(state: FileState, record: CommitRecord | None) -> str | None:
    """Return why the files differ from the commit record, as one clause; None: they may match.

    Args:
        state: the files.
        record: the commit record of the service; None: there is none.
    """
    database = state.database
    # If the file is no database, DuckDB reports what it is.
    if record is None or (state.exists and database is None):
        return None
    if database is None:
        return (
            "it is gone, and it held committed predictions: put it back, or a backup by `sightline"
            f" restore`{_TRUST}"
        )
    if database.identifier.hex() != record.identifier:
        return f"it is another database than the one that the service wrote: {_PUT_BACK}{_TRUST}"
    if database.iteration < record.iteration:
        return (
            f"it is older than what the service committed (it has had {database.iteration}"
            f" checkpoints of {record.iteration}): put back the newer one{_TRUST}"
        )
    if record.is_of(database) and state.log_bytes < record.log_bytes:
        return (
            f"its log is missing, older or cut off ({state.log_bytes} bytes of at least"
            f" {record.log_bytes} that were committed): put back the newer one{_TRUST}"
        )
    return None


def confirmed_bytes(state: FileState, record: CommitRecord | None) -> int | None:
    """Return how many bytes of the log are certainly committed; None: not known."""
    if record is None or state.database is None or not record.is_of(state.database):
        return None
    return record.log_bytes
