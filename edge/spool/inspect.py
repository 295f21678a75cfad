"""What there is to know of spool files without changing them, also while a node runs."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edge.spool import lock
from edge.spool.caps import SpoolLimits
from edge.spool.clock import SpoolClock
from edge.spool.directories import FILE_NAME
from edge.spool.entries import Gap, GapReason, Row
from edge.spool.identity import DamagedError, Identity, joined
from edge.spool.reader import SUSPICIOUS, SpoolReader, is_damage
from edge.spool.recovery import aside
from edge.spool.recovery.salvage import identity_in, salvage, unnamed
from edge.spool.superblock import Superblock, SuperblockFile
from servicekit.errors import invalid

NO_LIMITS = SpoolLimits(1 << 50, 0.0, 0)
_PORTION = 1000


@dataclass(frozen=True, slots=True)
class SpoolSummary:
    """One spool at a glance."""

    path: str
    """Its folder."""
    device_id: str
    spool_id: str
    pending: int
    """Sequences that wait for the server, gaps included."""
    oldest_age_seconds: float | None
    """How long the oldest prediction has been waiting, while the machine was on. None: unknown."""
    bytes: int
    """On the disk, the write-ahead log included."""
    in_use_by: str | None
    """The process that holds it. None: nobody does."""
    set_aside: Sequence[str]
    """Names of damaged files beside it."""
    problem: str | None
    """Why nothing more can be said without a repair. None: there is no reason."""


@dataclass(frozen=True, slots=True)
class Details:
    """One spool in detail."""

    summary: SpoolSummary
    acknowledged: int
    """The last sequence that the server is known to have committed."""
    sent_through: int | None
    """Every sequence up to this one may have been sent. None: not noted."""
    first_pending: int | None
    last_pending: int | None
    predictions: int
    """How many of the pending sequences are predictions."""
    gaps: Mapping[str, int]
    """How many of them were given up, by reason."""
    bytes_in_use: int
    """Of the spool's file."""
    bytes_taken: int
    """From the disk, by the spool's file; the rest is free for more predictions."""
    next: Sequence[Row] = field(repr=False)
    """The first predictions that wait."""


@dataclass(frozen=True, slots=True)
class SpoolCheck:
    """What a full reading of a spool file has found."""

    path: str
    device_id: str | None
    spool_id: str | None
    predictions: int
    """Predictions that can be read."""
    gap_sequences: int
    """Sequences that are declared lost."""
    damaged: Sequence[tuple[int, int]]
    """Runs of sequences that cannot be read and are not declared yet."""
    faults: Sequence[str]
    """What is wrong with the file as such."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.damaged and not self.faults


def file_at(path: Path) -> Path:
    """Return the spool file that a folder or a file name stands for.

    Raises:
        SightlineError: there is none (`SPOOL_NOT_FOUND`).
    """
    file = path / FILE_NAME if path.is_dir() else path
    recorded = file.name == FILE_NAME and SuperblockFile(file.parent).path.exists()
    if file.exists() or recorded:
        return file
    hint = "a folder with a spool.db, or a file that was set aside"
    raise invalid("path", f"must be {hint} (got {str(path)!r})", reason="SPOOL_NOT_FOUND")


def below(folder: Path) -> list[Path]:
    """Return the spool files in a folder and in those below it."""
    return sorted(folder.rglob(FILE_NAME))


def summary(path: Path) -> SpoolSummary:
    """Return what can be said of a spool file at once."""
    superblock, problem, oldest, identity = superblock_beside(path), None, None, None
    try:
        with closing(SpoolReader(path)) as reader:
            identity, oldest = reader.identity, reader.spooled_at(last=False)
    except SUSPICIOUS as error:
        problem = f"damaged: {error}"
        identity = superblock.identity if superblock else None
    age = None
    if oldest is not None:
        now = SpoolClock(superblock, oldest, oldest).now()
        age = round(max(0.0, now - oldest), 3)
    return SpoolSummary(
        str(path.parent if path.name == FILE_NAME else path),
        identity.device_id if identity else "",
        identity.spool_id if identity else "",
        identity.pending if identity else 0,
        age,
        aside.size_of(path),
        lock.holder(path.parent) if path.name == FILE_NAME else None,
        aside.names(aside.found(path.parent)) if path.name == FILE_NAME else [],
        problem,
    )


def details(path: Path, count: int) -> Details:
    """Return what can be said of a spool file, and its next predictions.

    Args:
        path: of the file.
        count: of predictions.
    """
    superblock, short = superblock_beside(path), summary(path)
    with readable(path) as reader:
        first, gaps, rows = reader.identity.acknowledged, Counter[str](), list[Row]()
        predictions = reader.count()
        for gap in reader.gaps.after(first, 1 << 30):
            gaps[gap.reason.name] += gap.last - max(gap.first - 1, first)
        while len(rows) < count:
            entries, _ = reader.look(first, count)
            if not entries:
                break
            first = entries[-1].sequence
            rows += [entry for entry in entries if isinstance(entry, Row)]
        identity, (in_use, taken) = reader.identity, reader.pages()
    return Details(
        short,
        identity.acknowledged,
        superblock.sent if superblock else None,
        identity.acknowledged + 1 if identity.pending else None,
        identity.last if identity.pending else None,
        predictions,
        dict(gaps),
        in_use,
        taken,
        rows[:count],
    )


def verify(path: Path) -> SpoolCheck:
    """Read all of a spool file and check all that can be checked.

    Raises:
        SightlineError: a later version made it (`SPOOL_TOO_NEW`).
        OSError, sqlite3.Error: it cannot be read at all.
    """
    superblock, faults = superblock_beside(path), list[str]()
    try:
        with closing(SpoolReader(path)) as reader:
            faults += reader.faults()
            faults += _early_end(reader.identity, superblock)
            counts, damaged = _read_through(reader)
            identity = reader.identity
    except SUSPICIOUS as error:
        if not is_damage(error):
            raise
        faults.append(str(error))
    if not faults:
        return SpoolCheck(
            str(path), identity.device_id, identity.spool_id, *counts, damaged, faults
        )
    return _check_of_damaged(path, faults)


@contextmanager
def readable(path: Path) -> Iterator[SpoolReader]:
    """Open a spool file; of one that is damaged, a salvaged copy that is deleted afterwards.

    Raises:
        DamagedError: nothing says which spool it was.
    """
    try:
        reader = SpoolReader(path)
    except SUSPICIOUS as error:
        if not is_damage(error):
            raise
        with salvaged_copy(path) as reader:
            yield reader
        return
    with closing(reader):
        yield reader


@contextmanager
def salvaged_copy(path: Path) -> Iterator[SpoolReader]:
    """Salvage a spool file into a temporary one.

    Raises:
        DamagedError: nothing says which spool it was.
    """
    known = identity_of(path)
    if known is None:
        raise DamagedError("nothing says which spool it was")
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        target = Path(folder) / FILE_NAME
        salvage(path, target, known, NO_LIMITS, time.time())
        with closing(SpoolReader(target)) as reader:
            yield reader


def identity_of(path: Path) -> Identity | None:
    """Return whose spool a file is, from itself, the note beside it, or what is left of it."""
    superblock = superblock_beside(path)
    recorded = superblock.identity if superblock else None
    try:
        with closing(SpoolReader(path)) as reader:
            return joined(reader.identity, recorded)
    except SUSPICIOUS as error:
        own = error.identity if isinstance(error, DamagedError) else None
    return joined(own, recorded) if own else recorded or identity_in(path)


def superblock_beside(path: Path) -> Superblock | None:
    """Return what is noted of a spool file; of one that was set aside, nothing is."""
    return SuperblockFile(path.parent).read() if path.name == FILE_NAME else None


def _early_end(identity: Identity, superblock: Superblock | None) -> list[str]:
    recorded = superblock.identity if superblock else None
    if recorded is None or recorded.spool_id != identity.spool_id or recorded.last <= identity.last:
        return []
    return [f"its end is gone, after sequence {identity.last} of {recorded.last}"]


def _read_through(reader: SpoolReader) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return how many predictions and lost sequences there are, and what is missing."""
    rows, lost, damaged, position = 0, 0, list[tuple[int, int]](), 0
    while True:
        entries, missing = reader.look(position, _PORTION)
        damaged += missing
        for entry in entries:
            rows += isinstance(entry, Row)
            lost += entry.last - entry.first + 1 if isinstance(entry, Gap) else 0
        last = max([*(e.sequence for e in entries), *(last for _, last in missing)], default=0)
        if last <= position:
            return (rows, lost), damaged
        position = last


def _check_of_damaged(path: Path, faults: Sequence[str]) -> SpoolCheck:
    try:
        with salvaged_copy(path) as reader:
            (rows, lost), _ = _read_through(reader)
            gaps = reader.gaps.after(0, 1 << 30)
            identity = reader.identity
    except DamagedError as error:
        found = unnamed(path)
        return SpoolCheck(
            str(path), None, None, found[1] if found else 0, 0, [], [*faults, str(error)]
        )
    runs = [(one.first, one.last) for one in gaps if one.reason is GapReason.SPOOL_DAMAGED]
    lost -= sum(last - first + 1 for first, last in runs)
    return SpoolCheck(str(path), identity.device_id, identity.spool_id, rows, lost, runs, faults)
