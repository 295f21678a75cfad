"""Salvage of a damaged spool file: its readable predictions are copied to a sound file.

A prediction keeps its sequence and spool_id, so that the server's watermark still tells whether it
is committed and nothing is stored twice. Unreadable sequences become gaps. The new file gets its
name only when it is complete, so that a process that is killed leaves the damaged file unchanged.
"""

import itertools
import shutil
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edge.spool import caps
from edge.spool.caps import Lost, SpoolLimits
from edge.spool.directories import FILE_NAME, new_fork_directory
from edge.spool.entries import Gap, GapReason
from edge.spool.file import SpoolFile
from edge.spool.gaps import GapTable
from edge.spool.identity import Identity, joined
from edge.spool.reader import SUSPICIOUS, connect_to_read
from edge.spool.recovery import aside
from edge.spool.recovery.carve import Carver
from edge.spool.rows import tag_in, tag_of

_CHUNK = 5000
PART = ".part"
"""Suffix of a file until it is complete."""
_NO_LIMIT = 1 << 62
_Row = tuple[int, float, bytes]


@dataclass(frozen=True, slots=True)
class SalvageResult:
    """The result of a salvage."""

    identity: Identity
    """Identity of the new file."""
    rows: int
    """Number of predictions in the new file."""
    lost: Sequence[Lost]
    """Runs that were unreadable or exceeded the limits, by sequence."""


def salvage(
    source: Path,
    target: Path,
    known: Identity,
    limits: SpoolLimits,
    now: float,
    *,
    is_exact: bool = False,
) -> SalvageResult:
    """Create a sound spool file from the readable part of a damaged one, which stays unchanged.

    Args:
        source: the damaged file. No process may have it open.
        target: the new file.
        known: the known identity of the spool. The file may show that it went further.
        limits: limits of the new file.
        now: Unix seconds.
        is_exact: True: no sequence beyond `known` was committed, whatever the file contains.

    Raises:
        OSError, sqlite3.Error: the disk failed.
    """
    part = Path(f"{target}{PART}")
    aside.delete(part)
    try:
        with closing(Carver(source)) as carver:
            if not is_exact:
                known = joined(known, *carver.identities())
            last = known.last if is_exact else _NO_LIMIT
            with closing(SpoolFile(part, replace(known, unbound=0))) as file:
                lost = _fill(file, _intact(carver, known, last), limits, now)
                lost += _settle(file, _known_gaps(source, known.acknowledged), known, now)
                result = SalvageResult(file.identity, file.count(), lost)
                file.complete()
    except (OSError, sqlite3.Error):
        aside.delete(part)  # frees the space, since the disk may be full
        raise
    part.rename(target)
    return result


def salvage_apart(
    source: Path, known: Identity, limits: SpoolLimits, now: float
) -> tuple[Path, SalvageResult]:
    """Salvage into a new fork directory, and return the directory; see `salvage`."""
    fork = new_fork_directory(source.parent)
    fork.mkdir(parents=True, mode=0o700)
    try:
        return fork, salvage(source, fork / FILE_NAME, known, limits, now)
    except (OSError, sqlite3.Error):
        with suppress(OSError):  # the next attempt uses another directory
            fork.rmdir()
        raise


def identity_in(source: Path) -> Identity | None:
    """Return the latest identity that a damaged file still contains, or None."""
    with closing(Carver(source)) as carver:
        identities = list(carver.identities())
    return joined(identities[-1], *identities) if identities else None


def unnamed(source: Path) -> tuple[int, int] | None:
    """Return the common tag and the number of predictions whose spool is not known.

    Returns:
        The tag in their checksums, and their number. None: there are no predictions.
    """
    with closing(Carver(source)) as carver:
        tags: dict[int, int] = {
            row.sequence: tag_in(row.check, row.prediction, row.sequence) for row in carver.rows()
        }
    # Damaged rows and rows of version 1 each have another tag.
    best = Counter(tags.values()).most_common(1)
    return best[0] if best else None


def delete_leftovers(directory: Path) -> None:
    """Delete incomplete files that a killed process has left."""
    for path in directory.glob(f"*{PART}*"):
        path.unlink(missing_ok=True)


def _intact(carver: Carver, spool: Identity, last: int) -> Iterator[_Row]:
    tag = tag_of(spool.spool_id)
    for row in carver.rows():
        if spool.acknowledged < row.sequence <= last and (
            tag_in(row.check, row.prediction, row.sequence) == tag
            or (row.sequence <= spool.unbound and zlib.crc32(row.prediction) == row.check)
        ):
            yield row.sequence, row.spooled_at, row.prediction


def _fill(file: SpoolFile, rows: Iterator[_Row], limits: SpoolLimits, now: float) -> list[Lost]:
    lost: list[Lost] = []
    while chunk := list(itertools.islice(rows, _CHUNK)):
        free = shutil.disk_usage(file.path.parent).free
        cap, reason = caps.byte_cap(file, limits, free)
        with file.transaction(durable=False):
            file.restore(chunk)
            lost += caps.evict_bytes(file, cap, reason, now)
    return lost


def _settle(file: SpoolFile, gaps: Sequence[Gap], known: Identity, now: float) -> list[Lost]:
    with file.transaction(durable=False):
        for gap in gaps:
            first = max(gap.first, known.acknowledged + 1)
            file.give_up(first, gap.last, gap.reason, gap.declared_at)
        last = max([known.last, *(gap.last for gap in gaps)])
        missing = file.settle(known.acknowledged, last)
        lost = [caps.give_up(file, *run, GapReason.SPOOL_DAMAGED, now) for run in missing]
    return [run for run in lost if run.count]


def _known_gaps(source: Path, acknowledged: int) -> list[Gap]:
    """Return the gaps of a damaged file that SQLite can still read."""
    gaps: list[Gap] = []
    with suppress(*SUSPICIOUS), closing(connect_to_read(source)) as db:
        gaps = GapTable(db).after(acknowledged, 1 << 30)
    return gaps
