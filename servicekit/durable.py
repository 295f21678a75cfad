"""Changes to files that survive a power failure, and renames that never overwrite."""

import os
from contextlib import suppress
from pathlib import Path


def sync_file(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk.

    Raises:
        OSError: the disk failed, or there is no such file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_name(source: Path, name: Path) -> None:
    """Rename a complete and synced file durably, without overwriting anything.

    Args:
        source: the file, in the folder of `name`.
        name: its new path, which must not exist.

    Raises:
        FileExistsError: `name` exists; nothing is changed.
        OSError: the disk failed.
    """
    try:
        os.link(source, name)  # unlike a rename, it overwrites nothing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if name.exists():
            raise FileExistsError(f"{name} exists already") from None
        source.rename(name)
    with suppress(FileNotFoundError):
        source.unlink()
    sync_file(name.parent)
