"""Makes changes to files outlive a power failure."""

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk.

    Raises:
        OSError: the disk failed, or there is no such file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names of a folder's files are on the disk.

    Raises:
        OSError: the disk failed, or there is no such folder.
    """
    sync_file(folder)
