"""One process at a time in a spool folder."""

import fcntl
import os
from pathlib import Path

import grpc

from servicekit.errors import SightlineError

FILE_NAME = "spool.lock"


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
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._file.read(32).decode("ascii", "replace").strip()
            self._file.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise SightlineError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "SPOOL_LOCKED",
                f"spool_dir: {directory} is in use by process {holder or 'unknown'}; "
                "every process that logs needs a folder of its own",
            ) from error
        self._file.truncate(0)
        self._file.write(b"%d\n" % os.getpid())

    def release(self) -> None:
        """Lets the next one in; in a forked process, lets go of what the parent goes on holding."""
        self._file.close()
