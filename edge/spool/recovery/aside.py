"""Damaged spool files that were set aside in the spool folder, for people to inspect."""

import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

MAX_FILES = 4
"""Number of set-aside files that are kept."""
_NAME = re.compile(r"spool\.(damaged|salvaged)-(\d+)\.db")
_SUFFIXES = ("-wal", "-shm", "")


@dataclass(frozen=True, slots=True)
class SetAsideFile:
    """A file that was set aside."""

    path: Path
    number: int
    is_salvaged: bool
    """True if its readable predictions were moved to a sound spool."""
    size: int
    """Size in bytes, including the write-ahead log."""


def set_aside_files(directory: Path) -> list[SetAsideFile]:
    """Return the files that were set aside in a folder, oldest first."""
    files = []
    for path in directory.glob("spool.*-*.db"):
        match = _NAME.fullmatch(path.name)
        if match:
            files.append(SetAsideFile(path, int(match[2]), match[1] == "salvaged", size_of(path)))
    return sorted(files, key=lambda file: file.number)


def size_of(path: Path) -> int:
    """Return the size on the disk of a spool file with its log."""
    return sum(_size(Path(f"{path}{suffix}")) for suffix in _SUFFIXES)


def set_aside(path: Path, *, is_salvaged: bool) -> Path:
    """Rename a spool file and its log to the next free name, and return that."""
    number = max((file.number for file in set_aside_files(path.parent)), default=0) + 1
    target = path.with_name(f"spool.{'salvaged' if is_salvaged else 'damaged'}-{number}.db")
    move(path, target)
    return target


def move(path: Path, target: Path) -> None:
    """Rename a spool file and its log; the file itself last."""
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{target}{suffix}")


def delete(path: Path) -> None:
    """Delete a spool file and its log; the file itself last."""
    for suffix in _SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def sync(directory: Path) -> None:
    """Sync a folder, so that its file names are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(directory: Path, max_bytes: int) -> None:
    """Delete set-aside files above the limits: salvaged ones first, then the oldest.

    Args:
        directory: the spool folder.
        max_bytes: limit for the total size of the set-aside files.
    """
    files = set_aside_files(directory)
    for file in sorted(files, key=lambda file: (not file.is_salvaged, file.number)):
        if len(files) <= MAX_FILES and sum(kept.size for kept in files) <= max_bytes:
            return
        logger.warning("spool: deleting the set-aside file %s to stay within the limits", file.path)
        with suppress(OSError):
            delete(file.path)
        files.remove(file)


def names(files: Sequence[SetAsideFile]) -> list[str]:
    """Return the file names of set-aside files."""
    return [file.path.name for file in files]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
