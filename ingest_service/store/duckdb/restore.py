"""Puts a backup in the place of a database that is gone."""

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
    """The backup cannot be restored. The message is one sentence for people."""


def restore(backup: Path, database: Path) -> tuple[Contents, list[Path]]:
    """Copy a backup to where a service looks for its database, and verify the copy.

    Args:
        backup: what `sightline backup` wrote; it stays as it is.
        database: must not be there, and no service may run on it.

    Returns:
        What it holds, and where logs that lay beside `database` are now.

    Raises:
        RestoreError: one of these is not so, the backup is damaged or no backup, or the disk
            failed; nothing is changed then.
    """
    database = database.resolve()  # where a link leads, the service looks for it
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
        found = _place(backup, database)
        aside = _set_logs_aside(database)
        record_file.clear()  # it is about the database that was here
    except duckdb.Error as error:
        raise RestoreError(f"{backup} cannot be restored, use another backup: {error}") from error
    except OSError as error:
        raise RestoreError(f"{backup} cannot be restored: {error}") from error
    finally:
        record_file.close()
    return found, aside


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
            f"{database} is there, and is never overwritten: move it away first, or name another"
            " file"
        )


def _place(backup: Path, database: Path) -> Contents:
    """Copy, verify, and then give the copy its name, which nothing may have taken meanwhile."""
    new = database.with_name(f"{database.name}.restored")
    new.unlink(missing_ok=True)
    try:
        shutil.copyfile(backup, new)
        new.chmod(0o600)
        sync_file(new)
        found = _verified(backup, new)
        _refuse_existing(database)
        take_name(new, database)
    finally:
        with suppress(OSError):
            new.unlink()
    return found


def _verified(backup: Path, copy: Path) -> Contents:
    version = schema_version(copy)
    if not 0 < version <= len(VERSIONS):
        raise RestoreError(
            f"{backup} is no backup that this Sightline can read: its schema has version {version},"
            f" and must have 1 to {len(VERSIONS)}"
        )
    found = verify(copy)
    if found.unbalanced:
        raise RestoreError(
            f"{backup} is not sound: the books of {found.unbalanced} spools do not balance; take"
            " another backup"
        )
    return found


def _set_logs_aside(database: Path) -> list[Path]:
    """Rename the logs of the database that was here: a service would not start beside them."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    log = log_path(database)
    aside = [
        left.rename(left.with_name(f"{left.name}.before-restore-{stamp}"))
        for left in (log, log.with_name(f"{log.name}.checkpoint"))
        if left.exists()
    ]
    sync_file(database.parent)
    return aside
