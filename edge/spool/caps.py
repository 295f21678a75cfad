"""When a spool gives up its oldest predictions, and which."""

from dataclasses import dataclass

from edge.spool.entries import GapReason
from edge.spool.file import SpoolFile

_SMALLEST_CAP = 1 << 20  # a full disk must not stop what merely passes through
_SPARE_BYTES = 4 << 20  # stay in the file, to be used again without asking the disk
_SHRINK_PAGES = 4096


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much a spool may hold."""

    max_bytes: int
    """Size of the file."""
    max_age_seconds: float
    """Since a prediction was spooled; 0: for ever."""
    disk_reserve_bytes: int
    """Free space on the disk below which the file does not grow."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A run of predictions, both ends included, that will never be sent."""

    first: int
    last: int
    reason: GapReason
    count: int
    """How many of them were not lost before."""


def byte_cap(file: SpoolFile, limits: SpoolLimits, free: int) -> tuple[int, GapReason]:
    """Return how many bytes may be in use after the next change, and which limit says so.

    Args:
        file: before the change.
        limits: of the spool.
        free: bytes free on its disk.
    """
    _, taken = file.pages()
    # At the reserve some of the file is kept unused, so that a change finds its room inside it.
    headroom = free - limits.disk_reserve_bytes
    room = max(_SMALLEST_CAP, taken + (headroom if headroom > 0 else -taken // 32))
    if limits.max_bytes <= room:
        return limits.max_bytes, GapReason.SPOOL_BYTES
    return room, GapReason.DISK_RESERVE


def evict_bytes(file: SpoolFile, cap: int, reason: GapReason, now: float) -> list[Lost]:
    """Give up the oldest until at most `cap` bytes are in use; inside a transaction.

    Args:
        file: after the change.
        cap: in bytes.
        reason: why the cap is what it is.
        now: Unix seconds.
    """
    lost = []
    in_use, _ = file.pages()
    while in_use > cap:
        through = file.oldest(in_use - cap + cap // 64)  # a little more: not again at once
        if not through:
            break
        lost.append(give_up(file, file.identity.acknowledged + 1, through, reason, now))
        in_use, _ = file.pages()
    return lost


def evict_expired(file: SpoolFile, cutoff: float, now: float) -> list[Lost]:
    """Give up what was spooled before a time on the spool's clock; in its own transaction."""
    through = file.expired(cutoff)
    if not through:
        return []
    with file.transaction():
        first = file.identity.acknowledged + 1
        return [give_up(file, first, through, GapReason.SPOOL_AGE, now)]


def give_up(file: SpoolFile, first: int, last: int, reason: GapReason, now: float) -> Lost:
    """Turn a run of sequences into a gap; inside a transaction."""
    return Lost(first, last, reason, file.give_up(first, last, reason, now))


def shrink(file: SpoolFile) -> None:
    """Give unused space back to the disk, a part of it at a time."""
    in_use, taken = file.pages()
    # More than a cap keeps unused (see above): else the file would grow, or, at the reserve, evict
    # again for what was given back here, until hardly anything is left of it.
    if taken - in_use > max(_SPARE_BYTES, taken // 16):
        file.shrink(_SHRINK_PAGES)
