"""Files in a spool folder that are no longer the spool: kept for people, but not for ever."""

import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

MAX_FILES = 4
"""How many files that were set aside are kept."""
_NAME = re.compile(r"spool\.(damaged|salvaged)-(\d+)\.db")
_SUFFIXES = ("-wal", "-shm", "")


@dataclass(frozen=True, slots=True)
class SetAsideFile:
    """A file that was set aside."""

    path: Path
    number: int
    is_salvaged: bool
    """Whether what is readable in it is in a spool again."""
    size: int
    """Bytes, its write-ahead log included."""


def found(directory: Path) -> list[SetAsideFile]:
    """Return the files that were set aside in a folder, oldest first."""
    files = []
    for path in directory.glob("spool.*-*.db"):
        match = _NAME.fullmatch(path.name)
        if match:
            files.append(SetAsideFile(path, int(match[2]), match[1] == "salvaged", size_of(path)))
    return sorted(files, key=lambda one: one.number)


def size_of(path: Path) -> int:
    """Return the bytes that a spool file and what belongs to it take from the disk."""
    return sum(_size(Path(f"{path}{suffix}")) for suffix in _SUFFIXES)


def set_aside(path: Path, *, is_salvaged: bool) -> Path:
    """Give a spool file, and what belongs to it, the next free name, and return that."""
    number = max((one.number for one in found(path.parent)), default=0) + 1
    target = path.with_name(f"spool.{'salvaged' if is_salvaged else 'damaged'}-{number}.db")
    move(path, target)
    return target


def move(path: Path, target: Path) -> None:
    """Rename a spool file and what belongs to it; the file itself last."""
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{target}{suffix}")


def delete(path: Path) -> None:
    """Delete a spool file and what belongs to it; the file itself last."""
    for suffix in _SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def sync(directory: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(directory: Path, max_bytes: int) -> None:
    """Delete what is too much: what was salvaged first, then the oldest.

    Args:
        directory: of the spool.
        max_bytes: of all files that were set aside.
    """
    files = found(directory)
    for one in sorted(files, key=lambda one: (not one.is_salvaged, one.number)):
        if len(files) <= MAX_FILES and sum(each.size for each in files) <= max_bytes:
            return
        logger.warning("spool: deletes %s, which was set aside", one.path)
        with suppress(OSError):
            delete(one.path)
        files.remove(one)


def names(files: Sequence[SetAsideFile]) -> list[str]:
    """Return the names of files."""
    return [one.path.name for one in files]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
