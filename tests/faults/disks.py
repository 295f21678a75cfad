"""Disks that are full for a time, for a process that writes to one folder."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BALLOON = "balloon"
_CHUNK = 4096


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[bool]:
    """Mount a small tmpfs on a folder; return False if that is not permitted."""
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m"]
    mounting = ["mount", *options, "tmpfs", str(folder)]
    if subprocess.run(mounting, check=False, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        # Lazily, because a process may still have a file open there.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path, spare: int) -> Iterator[None]:
    """Fill the disk whose root is a folder, within the block.

    Args:
        folder: mount point of a `small_disk`.
        spare: bytes left free.
    """
    balloon = folder / _BALLOON
    try:
        with balloon.open("wb", buffering=0) as file:
            _fill(file.fileno(), spare)
        yield
    finally:
        balloon.unlink()


@contextmanager
def limited(pid: int, folder: Path, spare: int) -> Iterator[None]:
    """Prevent the files of a process from growing: writes fail as on a full disk.

    Args:
        pid: id of the process.
        folder: folder of its files; the largest may grow by `spare` bytes.
        spare: bytes by which the largest file may grow.
    """
    size = max(path.stat().st_size for path in folder.iterdir() if path.is_file())
    before, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + spare, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (before, hard))


def _fill(descriptor: int, spare: int) -> None:
    with suppress(OSError):
        while os.write(descriptor, bytes(_CHUNK)):
            pass
    os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - spare))
