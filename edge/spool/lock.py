"""One process at a time in a spool folder."""

import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

import grpc

from servicekit.errors import SightlineError

FILE_NAME = "spool.lock"
# Whoever just looks whether a folder is in use (`holder`) shares its lock for an instant; many may.
_ATTEMPTS = 200
_PAUSE_SECONDS = 0.01


class SpoolLock:
    """Holds a folder until `release`, or until the process ends, however it ends.

    Args:
        directory: the folder; it exists.

    Attributes:
        path: of the lock's file.

    Raises:
        SightlineError: another process, or another object of this one, holds it (`SPOOL_LOCKED`).
        OSError: the folder cannot be written to.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        for left in range(_ATTEMPTS - 1, -1, -1):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            self._file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = _owner(self._file)
                self._file.close()
                if holder is not None or not left:
                    raise _locked(directory, holder or "unknown") from error
                time.sleep(_PAUSE_SECONDS)
            except OSError:
                self._file.close()
                raise
            else:
                if _is_at(self._file, self.path):
                    break
                self._file.close()  # the folder was removed under our hands: this is another file
        self._file.truncate(0)
        self._file.write(b"%d\n" % os.getpid())

    def release(self) -> None:
        """Let the next one in; in a forked process, lets go of what the parent goes on holding."""
        self._file.close()


def holder(directory: Path) -> str | None:
    """Return which process holds a folder, `unknown` if it does not say; None: nobody does.

    Raises:
        OSError: the folder cannot be looked into.
    """
    try:
        file = (directory / FILE_NAME).open("rb")
    except FileNotFoundError:
        return None
    with file:
        return _owner(file)


def _owner(file: BinaryIO) -> str | None:
    """Those who look can share the lock with each other, never with whom it belongs to."""
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
        "every process that logs needs a folder of its own",
        metadata={"process": process},
    )


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
