"""Restoration of a backup to the path of a missing database."""

import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from ingest_service.store.duckdb.commit_record import (
    CommitRecordFile,
    CommitRecordHeldError,
    log_path,
)
from ingest_service.store.duckdb.database_copy import Contents, schema_version, verify
from ingest_service.store.duckdb.file_format import HEADER_BYTES, parse_database
from ingest_service.store.duckdb.migrations import VERSIONS
from ingest_service.store.duckdb.verdict import NAMES_ITS_LOGS
from servicekit.durable import sync_file, take_name


class RestoreError(Exception):
    """The backup cannot be restored. The message is one sentence for users."""


def restore(backup: Path, database: Path) -> tuple[Contents, list[Path]]:
    """Copy a backup to the path of a service's database, and verify the copy.

    Args:
        backup: a file written by `sightline backup`; it is not changed.
        database: the path to restore to, which must not exist; no service may be using it.

    Returns:
        The row counts of the database, and the new paths of logs that were beside it.

    Raises:
        RestoreError: `database` exists or is in use, `backup` is damaged or no backup, or the disk
            failed; nothing is changed.
    """
    database = database.resolve()  # the service follows links, too
    _check_backup(backup)
    _refuse_existing(database)
    try:
        record_file = CommitRecordFile(database)
    except CommitRecordHeldError as error:
        raise RestoreError(
            f"a service still runs on {database} (PID {error}): stop it first"
        ) from error
    except OSError as error:
        raise RestoreError(f"{database} cannot be written: {error}") from error
    try:
        contents = _place(backup, database)
        aside = _set_logs_aside(database)
        record_file.clear()  # it describes the database that was here before
    except duckdb.Error as error:
        raise RestoreError(f"{backup} cannot be restored, use another backup: {error}") from error
    except OSError as error:
        raise RestoreError(f"{backup} cannot be restored: {error}") from error
    finally:
        record_file.close()
    return contents, aside


def _check_backup(backup: Path) -> None:
    log = log_path(backup)
    if log.exists() and log.stat().st_size:
        raise RestoreError(
            f"{backup} is no backup but a copy of a database with a log beside it ({log}): start a"
            " service on it, and take a backup of that"
        )
    try:
        with backup.open("rb") as file:
            header = parse_database(file.read(HEADER_BYTES))
    except OSError as error:
        raise RestoreError(f"{backup} cannot be read: {error.strerror}") from error
    if header is None or header.version < NAMES_ITS_LOGS:
        raise RestoreError(f"{backup} is no backup: `sightline backup --to FILE` writes them")


def _refuse_existing(database: Path) -> None:
    if database.exists():
        raise RestoreError(
            f"{database} exists, and is never overwritten: move it away first, or name another file"
        )


def _place(backup: Path, database: Path) -> Contents:
    """Copy and verify the backup, then rename the copy, unless the name is taken by now."""
    new = database.with_name(f"{database.name}.restored")
    new.unlink(missing_ok=True)
    try:
        shutil.copyfile(backup, new)
        new.chmod(0o600)
        sync_file(new)
        contents = _verified(backup, new)
        _refuse_existing(database)
        take_name(new, database)
    finally:
        with suppress(OSError):
            new.unlink()
    return contents


def _verified(backup: Path, copy: Path) -> Contents:
    version = schema_version(copy)
    if not 0 < version <= len(VERSIONS):
        raise RestoreError(
            f"{backup} is no backup that this Sightline can read: its schema has version {version},"
            f" and must have 1 to {len(VERSIONS)}"
        )
    contents = verify(copy)
    if contents.unbalanced:
        raise RestoreError(
            f"{backup} is not sound: the books of {contents.unbalanced} spools do not balance; take"
            " another backup"
        )
    return contents


def _set_logs_aside(database: Path) -> list[Path]:
    """Rename logs of the earlier database: a service does not start beside them."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    log = log_path(database)
    aside = [
        path.rename(path.with_name(f"{path.name}.before-restore-{stamp}"))
        for path in (log, log.with_name(f"{log.name}.checkpoint"))
        if path.exists()
    ]
    sync_file(database.parent)
    return aside
