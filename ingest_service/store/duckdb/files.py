"""The files of an open store: checks that they are at their paths, and the commit record.

DuckDB keeps writing to a file that was deleted or replaced. A commit to such a file is lost when
the process ends. So the files are checked after each COMMIT, before it is acknowledged.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ingest_service.store.duckdb.commit_record import CommitRecord, CommitRecordFile, log_path
from ingest_service.store.duckdb.file_format import HEADER_BYTES, DatabaseHeader, parse_database


class FilesMovedError(Exception):
    """A file is no longer at its path. The message is one clause for people."""


class LogMovedError(FilesMovedError):
    """The log is gone, but the database is not: a checkpoint saves what the log held."""


class _File(NamedTuple):
    """The identity of a file."""

    device: int
    inode: int


class StoreFiles:
    """The files of an open store. Not thread-safe, except for `check`.

    Create it right after DuckDB has opened the file, and close it after DuckDB has closed the file:
    closing any descriptor of a file releases all locks of the process on it, also DuckDB's.

    Args:
        database: its path.
        record_file: holds the commit record; closed together with this.

    Raises:
        OSError: the file does not exist.
    """

    def __init__(self, database: Path, record_file: CommitRecordFile) -> None:
        self._database = database
        self._log = log_path(database)
        self._record_file = record_file
        self._descriptor = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        self._opened = _File(status.st_dev, status.st_ino)
        self._header: DatabaseHeader
        self._known_log: _File | None
        self.reopened()

    def check(self) -> None:
        """Raise FilesMovedError if the path no longer leads to the database that is open."""
        self._check_database()

    def check_log(self) -> None:
        """Raise LogMovedError if the log has changed since the last COMMIT."""
        if self._check_database().iteration == self._header.iteration:
            self._check_log(*_identify(self._log))

    def committed(self, *, alone: bool) -> None:
        """Check the files after a COMMIT and update the commit record.

        Args:
            alone: True if no other COMMIT is running: the log then ends with this one.

        Raises:
            FilesMovedError: the database or its log is not at its path: the commit must not be
                acknowledged.
        """
        header = self._check_database()
        log, size = _identify(self._log)
        if header.iteration == self._header.iteration:
            self._check_log(log, size)
        else:
            self._header, self._log_bytes = header, 0  # the log has begun anew
        is_new = log != self._known_log
        self._known_log = log
        if alone:
            self._log_bytes = size
        self._write_record(sync=is_new)

    def set_log_aside(self) -> None:
        """Rename a foreign file at the path of the log."""
        with suppress(OSError):
            self._log.rename(self._log.with_name(f"{self._log.name}.foreign-{os.getpid()}"))

    def reopened(self) -> None:
        """Record the present state of the files, after DuckDB has opened or closed them."""
        self._header = self._read_header()
        # DuckDB opens the log by its name when it first writes, so it is known from here on.
        self._known_log, self._log_bytes = _identify(self._log)
        self._write_record(sync=True)

    def close(self) -> None:
        """Close the files: another process may open the store."""
        os.close(self._descriptor)
        self._record_file.close()

    def _write_record(self, *, sync: bool) -> None:
        header = self._header
        record = CommitRecord(
            header.identifier.hex(), header.iteration, self._log_bytes, os.getpid()
        )
        self._record_file.write(record, sync=sync)

    def _check_log(self, log: _File | None, size: int) -> None:
        if self._known_log is not None and log != self._known_log:
            raise LogMovedError(f"{self._log} is {'gone' if log is None else 'another file'} now")
        if size < self._log_bytes:
            raise LogMovedError(f"{self._log} was cut short")

    def _check_database(self) -> DatabaseHeader:
        known = self._header  # first: another thread may record a checkpoint meanwhile
        file, _ = _identify(self._database)
        if file != self._opened:
            what = "gone" if file is None else "another file"
            raise FilesMovedError(f"{self._database}, which is open, is {what} now")
        header = self._read_header()
        if header.identifier != known.identifier or header.iteration < known.iteration:
            raise FilesMovedError(f"{self._database}, which is open, was overwritten")
        return header

    def _read_header(self) -> DatabaseHeader:
        header = parse_database(os.pread(self._descriptor, HEADER_BYTES, 0))
        if header is None:
            raise FilesMovedError(f"{self._database}, which is open, was overwritten")
        return header


def _identify(path: Path) -> tuple[_File | None, int]:
    """Return the identity and size in bytes of the file at a path; None: it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None, 0
    return _File(status.st_dev, status.st_ino), status.st_size
