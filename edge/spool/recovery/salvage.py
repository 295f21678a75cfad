"""What is readable in a damaged spool file, carried over into a sound one under the same identity.

A prediction keeps its sequence and its spool_id, so that the server's watermark still says whether
it is committed; nothing is sent that could be in the store already under another name. What cannot
be read becomes a gap. The new file appears when it is complete, so that a process that is killed
meanwhile leaves the damaged file as it was.
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
"""What a file is called until it is complete."""
_NO_LIMIT = 1 << 62
_Row = tuple[int, float, bytes]


@dataclass(frozen=True, slots=True)
class SalvageResult:
    """What became of a damaged file."""

    identity: Identity
    """Of the new file."""
    rows: int
    """Predictions in it."""
    lost: Sequence[Lost]
    """What could not be read, or found no room, by sequence."""


def salvage(
    source: Path,
    target: Path,
    known: Identity,
    limits: SpoolLimits,
    now: float,
    *,
    is_exact: bool = False,
) -> SalvageResult:
    """Make a sound spool file of what is readable in a damaged one, which stays as it is.

    Args:
        source: the damaged file. Nobody may have it open.
        target: the new file.
        known: what is known of the spool; the file may say that it went further.
        limits: of the new file.
        now: Unix seconds.
        is_exact: it did not go further: whatever the file says beyond was never committed.

    Raises:
        OSError, sqlite3.Error: the disk does not do it.
    """
    part = Path(f"{target}{PART}")
    aside.delete(part)
    try:
        with closing(Carver(source)) as carver:
            if not is_exact:
                known = joined(known, *carver.identities())
            most = known.last if is_exact else _NO_LIMIT
            with closing(SpoolFile(part, replace(known, unbound=0))) as file:
                lost = _fill(file, _intact(carver, known, most), limits, now)
                lost += _settle(file, _known_gaps(source, known.acknowledged), known, now)
                done = SalvageResult(file.identity, file.count(), lost)
                file.complete()
    except (OSError, sqlite3.Error):
        aside.delete(part)  # a full disk needs the room
        raise
    part.rename(target)
    return done


def salvage_apart(
    source: Path, known: Identity, limits: SpoolLimits, now: float
) -> tuple[Path, SalvageResult]:
    """Salvage into a home of its own, and return that; see `salvage`."""
    fork = new_fork_directory(source.parent)
    fork.mkdir(parents=True, mode=0o700)
    try:
        return fork, salvage(source, fork / FILE_NAME, known, limits, now)
    except (OSError, sqlite3.Error):
        with suppress(OSError):  # it will be tried again, each time in another
            fork.rmdir()
        raise


def identity_in(source: Path) -> Identity | None:
    """Return the latest identity that a damaged file still holds. None: it holds none."""
    with closing(Carver(source)) as carver:
        every = list(carver.identities())
    return joined(every[-1], *every) if every else None


def unnamed(source: Path) -> tuple[int, int] | None:
    """Return what can be said of predictions whose spool is not known.

    Returns:
        What their checksums have in common, and how many there are. None: there are none.
    """
    with closing(Carver(source)) as carver:
        tags: dict[int, int] = {
            one.sequence: tag_in(one.check, one.prediction, one.sequence) for one in carver.rows()
        }
    # That of rows that are damaged, or of version 1, is different for each.
    best = Counter(tags.values()).most_common(1)
    return best[0] if best else None


def leftovers(directory: Path) -> None:
    """Delete what a process that was killed while it salvaged has left."""
    for path in directory.glob(f"*{PART}*"):
        path.unlink(missing_ok=True)


def _intact(carver: Carver, spool: Identity, most: int) -> Iterator[_Row]:
    tag = tag_of(spool.spool_id)
    for one in carver.rows():
        if spool.acknowledged < one.sequence <= most and (
            tag_in(one.check, one.prediction, one.sequence) == tag
            or (one.sequence <= spool.unbound and zlib.crc32(one.prediction) == one.check)
        ):
            yield one.sequence, one.spooled_at, one.prediction


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
    return [one for one in lost if one.count]


def _known_gaps(source: Path, acknowledged: int) -> list[Gap]:
    """Return the gaps of a damaged file, as far as SQLite still finds them."""
    gaps: list[Gap] = []
    with suppress(*SUSPICIOUS), closing(connect_to_read(source)) as db:
        gaps = GapTable(db).after(acknowledged, 1 << 30)
    return gaps
