"""Files that only their owner may read, whatever umask a process was started with."""

import contextlib
import os
from pathlib import Path

_before: int | None = None  # the umask that the process was started with


def make_private(path: str | Path) -> None:
    """Create an empty file of mode 600; a file that exists keeps its mode.

    For SQLite, which treats an empty file as a new database and gives its log the same mode. If the
    file cannot be created, SQLite reports it.
    """
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def keep_private() -> None:
    """Make every new file of this process private; a service calls this when it starts.

    DuckDB creates its log again after every checkpoint, and refuses an empty file. There is no
    other way to give these files a mode from their first byte on.
    """
    global _before
    before = os.umask(0o077)
    if _before is None:
        _before = before


def share(path: Path) -> None:
    """Give a new file or folder the mode that it would have without `keep_private`."""
    if _before is not None:
        path.chmod((0o777 if not path.is_file() else 0o666) & ~_before)


def make_shared_folder(path: Path) -> None:
    """Create a folder and its parents with the modes that they would have without `keep_private`.

    Raises:
        OSError: a folder cannot be created.
    """
    if path.is_dir():
        return
    make_shared_folder(path.parent)
    path.mkdir(exist_ok=True)
    share(path)
