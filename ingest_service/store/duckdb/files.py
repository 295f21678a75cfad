"""The files of a DuckDB store while it is open: still at their paths, and how far they are noted.

DuckDB goes on writing to a file that was deleted or replaced. What is committed there is lost with
the process, so the files are looked at after each COMMIT, before anyone hears of it.
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
    """The log is gone and the database is there: a checkpoint keeps what the log held."""


class _File(NamedTuple):
    """Which file a path leads to."""

    device: int
    inode: int


class StoreFiles:
    """The files of an open store. Used by one thread at a time, save `check`.

    Make it right after DuckDB has opened the file, and close it after DuckDB has closed it: closing
    any descriptor of a file lets go of all locks that the process has on it, DuckDB's among them.

    Args:
        database: its path.
        record_file: holds the commit record; closed together with this.

    Raises:
        OSError: the file is not there.
    """

    def __init__(self, database: Path, record_file: CommitRecordFile) -> None:
        self._database = database
        self._log = log_path(database)
        self._record_file = record_file
        self._descriptor = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self._descriptor)
        self._opened = _File(found.st_dev, found.st_ino)
        self._header: DatabaseHeader
        self._known_log: _File | None
        self.reopened()

    def check(self) -> None:
        """Raise FilesMovedError if the path no longer leads to the database that is open."""
        self._check_database()

    def check_log(self) -> None:
        """Raise LogMovedError if the log is not what it was after the last COMMIT."""
        if self._check_database().iteration == self._header.iteration:
            self._check_log(*_look(self._log))

    def committed(self, *, alone: bool) -> None:
        """Note that a COMMIT is durable.

        Args:
            alone: whether no other COMMIT runs: the log then ends with this one.

        Raises:
            FilesMovedError: what was committed is not in the file at the path, or its log is not
                at its own: nobody must hear of it.
        """
        header = self._check_database()
        log, size = _look(self._log)
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
        """Give a file that somebody put in the place of the log another name."""
        with suppress(OSError):
            self._log.rename(self._log.with_name(f"{self._log.name}.foreign-{os.getpid()}"))

    def reopened(self) -> None:
        """Take and note the files as they are, after DuckDB has opened or closed them."""
        self._header = self._read_header()
        # DuckDB opens the log by its name when it first writes, so it is known from here on.
        self._known_log, self._log_bytes = _look(self._log)
        self._write_record(sync=True)

    def close(self) -> None:
        """Let the next process in."""
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
        known = self._header  # first: another thread may take note of a checkpoint meanwhile
        found, _ = _look(self._database)
        if found != self._opened:
            what = "gone" if found is None else "another file"
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


def _look(path: Path) -> tuple[_File | None, int]:
    """Return which file a path leads to and its size, bytes; None: to none that can be told."""
    try:
        found = path.stat()
    except OSError:
        return None, 0
    return _File(found.st_dev, found.st_ino), found.st_size
