"""The caps of a spool: eviction of the oldest predictions by size, age and free disk space."""

from dataclasses import dataclass

from edge.spool.entries import GapReason
from edge.spool.file import SpoolFile

_SMALLEST_CAP = 1 << 20  # predictions must pass through even when the disk is full
_SPARE_BYTES = 4 << 20  # kept in the file for reuse
_SHRINK_PAGES = 4096


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """The limits on the size and age of a spool."""

    max_bytes: int
    """Maximum size of the file."""
    max_age_seconds: float
    """Maximum age of a spooled prediction. 0: no limit."""
    disk_reserve_bytes: int
    """Free disk space below which the file does not grow."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A run of predictions, both ends included, that will never be sent."""

    first: int
    last: int
    reason: GapReason
    count: int
    """Predictions of the run that were not lost before."""


def byte_cap(file: SpoolFile, limits: SpoolLimits, free: int) -> tuple[int, GapReason]:
    """Return the bytes that may be in use after the next change, and the limit that decides.

    Args:
        file: the spool file before the change.
        limits: the spool's limits.
        free: free bytes on its disk.
    """
    _, allocated = file.pages()
    # At the reserve, part of the file stays unused so that a change fits into it.
    headroom = free - limits.disk_reserve_bytes
    allowed = max(_SMALLEST_CAP, allocated + (headroom if headroom > 0 else -allocated // 32))
    if limits.max_bytes <= allowed:
        return limits.max_bytes, GapReason.SPOOL_BYTES
    return allowed, GapReason.DISK_RESERVE


def evict_bytes(file: SpoolFile, cap: int, reason: GapReason, now: float) -> list[Lost]:
    """Evict the oldest predictions until at most `cap` bytes are in use. Needs a transaction.

    Args:
        file: the spool file after the change.
        cap: maximum bytes in use.
        reason: the limit that decided the cap.
        now: Unix seconds.
    """
    lost = []
    in_use, _ = file.pages()
    while in_use > cap:
        # A little more than needed, so that the next change does not evict again.
        through = file.oldest(in_use - cap + cap // 64)
        if not through:
            break
        lost.append(give_up(file, file.identity.acknowledged + 1, through, reason, now))
        in_use, _ = file.pages()
    return lost


def evict_expired(file: SpoolFile, cutoff: float, now: float) -> list[Lost]:
    """Evict predictions spooled before a time on the spool's clock, in an own transaction."""
    through = file.expired(cutoff)
    if not through:
        return []
    with file.transaction():
        first = file.identity.acknowledged + 1
        return [give_up(file, first, through, GapReason.SPOOL_AGE, now)]


def give_up(file: SpoolFile, first: int, last: int, reason: GapReason, now: float) -> Lost:
    """Turn a run of sequences into a gap. Needs a transaction."""
    return Lost(first, last, reason, file.give_up(first, last, reason, now))


def shrink(file: SpoolFile) -> None:
    """Return a part of the unused space to the disk."""
    in_use, allocated = file.pages()
    # Keep more unused than `byte_cap` does. Otherwise the file would grow again at once, or, at
    # the reserve, each shrink would cause an eviction until the spool is nearly empty.
    if allocated - in_use > max(_SPARE_BYTES, allocated // 16):
        file.shrink(_SHRINK_PAGES)
