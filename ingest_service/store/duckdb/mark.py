"""Notes beside a database what was last committed to it.

So the service can tell a database that somebody put back from the one that it left.
Each COMMIT is noted after it is durable and before anyone hears of it. The note is synced once for
each log, when it begins: what comes later outlives the process, not a power failure. After one it
may be older than the database, and then says less, never something wrong.
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


class Note(NamedTuple):
    """What is known of a database without its files."""

    identifier: str
    """Of the database, hexadecimal."""
    iteration: int
    """Checkpoints that it has had."""
    log_bytes: int
    """Bytes of the log behind that checkpoint that are committed, at least."""
    process: int
    """Who noted it."""

    def is_of(self, header: DatabaseHeader) -> bool:
        """Return whether the note is about this state of this database: `log_bytes` counts."""
        return self.identifier == header.identifier.hex() and self.iteration == header.iteration


class MarkHeldError(Exception):
    """Another process holds the mark. The message is the number of the process."""


class Mark:
    """The file that the note is in, held by one process at a time until `close`.

    Args:
        database: path of the database; its folder exists.

    Raises:
        MarkHeldError: another process holds it.
        OSError: the file cannot be made or opened.
    """

    def __init__(self, database: Path) -> None:
        self.path = mark_path(database)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note = self.read()
            self.close()
            raise MarkHeldError("unknown" if note is None else str(note.process)) from None
        except OSError as error:  # a file system without locks
            logger.debug("%s cannot be locked: %s", self.path, error)

    def read(self) -> Note | None:
        """Return the note; None: there is none that can be read."""
        try:
            line = os.pread(self._descriptor, _SIZE, 0).rstrip()
            check, _, whole = line.decode().partition(" ")
            if f"{zlib.crc32(whole.encode()):08x}" != check:
                return None
            return Note(*json.loads(whole))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, note: Note, *, sync: bool = False) -> None:
        """Note a commit. What cannot be noted leaves the note before, which says less.

        Args:
            note: what to note.
            sync: whether to return when it is on the disk.
        """
        whole = json.dumps(note)
        line = f"{zlib.crc32(whole.encode()):08x} {whole}".encode()
        try:
            os.pwrite(self._descriptor, line.ljust(_SIZE - 1) + b"\n", 0)
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            logger.debug("%s cannot be written: %s", self.path, error)

    def clear(self) -> None:
        """Forget what is noted.

        Raises:
            OSError: the disk failed.
        """
        os.ftruncate(self._descriptor, 0)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let the next process in."""
        os.close(self._descriptor)


def mark_path(database: Path) -> Path:
    """Return where the mark of a database is: beside the file, where a link leads to it."""
    file = database.resolve()
    return file.with_name(f"{file.name}.mark")


def log_path(database: Path) -> Path:
    """Return where DuckDB keeps the write-ahead log: beside the file, where a link leads to it."""
    file = database.resolve()
    return file.with_name(f"{file.name}.wal")
