"""Files that only their owner may read, whatever umask a process was started with."""

import contextlib
import os
from pathlib import Path

_before: int | None = None  # the umask that the process was started with


def make_private(path: str | Path) -> None:
    """Make an empty file of mode 600 where there is none; one that is there keeps its mode.

    For SQLite, which takes an empty file for a new database, and gives its log the same mode. A
    file that cannot be made is left to SQLite, which says so.
    """
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def keep_private() -> None:
    """Let this process make private files only, until it ends; for a service at its start.

    DuckDB makes its log anew after every checkpoint, and refuses an empty file: there is no other
    way to give these files a mode from their first byte on.
    """
    global _before
    before = os.umask(0o077)
    if _before is None:
        _before = before


def share(path: Path) -> None:
    """Give a file or a folder that was just made the mode that it would have by itself."""
    if _before is not None:
        path.chmod((0o777 if not path.is_file() else 0o666) & ~_before)


def make_shared_folder(path: Path) -> None:
    """Make a folder, and those above it, with the modes that they would have by themselves.

    Raises:
        OSError: one cannot be made.
    """
    if path.is_dir():
        return
    make_shared_folder(path.parent)
    path.mkdir(exist_ok=True)
    share(path)
