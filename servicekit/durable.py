"""Makes changes to files outlive a power failure, and gives files names without overwriting."""

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


def take_name(made: Path, name: Path) -> None:
    """Give a file that is whole and synced its name, which nothing may have; durably.

    Args:
        made: in the same folder.
        name: what it is to be called.

    Raises:
        FileExistsError: something has that name; nothing is changed.
        OSError: the disk failed.
    """
    try:
        os.link(made, name)  # unlike a rename, it overwrites nothing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if name.exists():
            raise FileExistsError(f"{name} is there already") from None
        made.rename(name)
    with suppress(FileNotFoundError):
        made.unlink()
    sync_file(name.parent)
