"""The lock that lets only one process use a spool folder."""

import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

import grpc

from servicekit.errors import SightlineError

FILE_NAME = "spool.lock"
# `holder` takes a shared lock for an instant, so a failed attempt need not mean that it is in use.
_ATTEMPTS = 200
_PAUSE_SECONDS = 0.01


class SpoolLock:
    """An exclusive lock on a folder, held until `release` or until the process ends in any way.

    Args:
        directory: the folder, which must exist.

    Attributes:
        path: the lock file.

    Raises:
        SightlineError: another process or object holds the lock (`SPOOL_LOCKED`).
        OSError: the folder cannot be written to.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        for attempts_left in range(_ATTEMPTS - 1, -1, -1):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            self._file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                process = _owner(self._file)
                self._file.close()
                if process is not None or not attempts_left:
                    raise _locked(directory, process or "unknown") from error
                time.sleep(_PAUSE_SECONDS)
            except OSError:
                self._file.close()
                raise
            else:
                if _is_at(self._file, self.path):
                    break
                self._file.close()  # the folder was replaced meanwhile, and this file with it
        self._file.truncate(0)
        self._file.write(b"%d\n" % os.getpid())

    def release(self) -> None:
        """Release the lock. In a forked child the parent keeps holding it."""
        self._file.close()


def holder(directory: Path) -> str | None:
    """Return the process that holds a folder, `unknown` if it is not recorded, None if none does.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        file = (directory / FILE_NAME).open("rb")
    except FileNotFoundError:
        return None
    with file:
        return _owner(file)


def _owner(file: BinaryIO) -> str | None:
    """Return the process that holds the lock. A shared lock fails only against its owner."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return file.read(32).decode("ascii", "replace").strip() or "unknown"
    return None


def _locked(directory: Path, process: str) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "SPOOL_LOCKED",
        f"spool_dir: {directory} is in use by process {process}; "
        "give each process that logs a folder of its own",
        metadata={"process": process},
    )


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
