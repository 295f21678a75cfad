"""Disks that are full for a while, for a process that writes to one folder."""

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
    """Mounts a small tmpfs on a folder; False: that is not allowed here."""
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m"]
    mounting = ["mount", *options, "tmpfs", str(folder)]
    if subprocess.run(mounting, check=False, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        # Lazily: whoever still has a file open there ends by itself.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path, spare: int) -> Iterator[None]:
    """Fills the disk that a folder is the root of.

    Args:
        folder: where a `small_disk` is.
        spare: bytes that are left.
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
    """Lets no file of a process grow: its writes fail as on a disk that is full.

    Args:
        pid: of the process.
        folder: its files: the largest may grow by `spare` bytes.
        spare: see above.
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
