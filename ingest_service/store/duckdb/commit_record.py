"""The commit record: a file beside a database that holds what was last committed to it.

At the next start, the service compares the record with the files. So it notices a database that was
replaced by an older copy. Each COMMIT is recorded after it is durable and before it is
acknowledged. The record is synced once per write-ahead log, when the log begins: later records
survive the end of the process, but not a power failure. After a power failure the record may be
older than the database. It then claims less than is true, and nothing false.
"""

import fcntl
import json
import logging
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from ingest_service.store.duckdb.file_format import DatabaseHeader

logger = logging.getLogger(__name__)

_SIZE = 512  # one sector, allocated once, so that a full disk does not matter


class CommitRecord(NamedTuple):
    """The state of a database after its last recorded commit."""

    identifier: str
    """Of the database, hexadecimal."""
    iteration: int
    """Checkpoints that it has had."""
    log_bytes: int
    """Bytes of the log behind that checkpoint that are committed, at least."""
    process: int
    """PID of the process that wrote the record."""

    def is_of(self, header: DatabaseHeader) -> bool:
        """Return True if the record is of this database at this checkpoint: `log_bytes` holds."""
        return self.identifier == header.identifier.hex() and self.iteration == header.iteration


class CommitRecordHeldError(Exception):
    """Another process holds the commit record. The message is its PID."""


class CommitRecordFile:
    """The file with the commit record; one process at a time holds it, until `close`.

    Args:
        database: path of the database; its folder exists.

    Raises:
        CommitRecordHeldError: another process holds it.
        OSError: the file cannot be made or opened.
    """

    def __init__(self, database: Path) -> None:
        self.path = commit_record_path(database)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = self.read()
            self.close()
            raise CommitRecordHeldError(
                "unknown" if record is None else str(record.process)
            ) from None
        except OSError as error:  # a file system without locks
            logger.debug("%s cannot be locked: %s", self.path, error)

    def read(self) -> CommitRecord | None:
        """Return the record; None: there is none, or it cannot be read."""
        try:
            line = os.pread(self._descriptor, _SIZE, 0).rstrip()
            check, _, whole = line.decode().partition(" ")
            if f"{zlib.crc32(whole.encode()):08x}" != check:
                return None
            return CommitRecord(*json.loads(whole))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, record: CommitRecord, *, sync: bool = False) -> None:
        """Record a commit. If the file cannot be written, the record before it stays.

        Args:
            record: the state after the commit.
            sync: True: return only when the record is on the disk.
        """
        whole = json.dumps(record)
        line = f"{zlib.crc32(whole.encode()):08x} {whole}".encode()
        try:
            os.pwrite(self._descriptor, line.ljust(_SIZE - 1) + b"\n", 0)
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            logger.debug("%s cannot be written: %s", self.path, error)

    def clear(self) -> None:
        """Delete the record.

        Raises:
            OSError: the disk failed.
        """
        os.ftruncate(self._descriptor, 0)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Release the file: another process may open it."""
        os.close(self._descriptor)


def commit_record_path(database: Path) -> Path:
    """Return the path of the commit record: beside the database file, with links followed."""
    file = database.resolve()
    return file.with_name(f"{file.name}.mark")


def log_path(database: Path) -> Path:
    """Return the path of the write-ahead log: beside the database file, with links followed."""
    file = database.resolve()
    return file.with_name(f"{file.name}.wal")
