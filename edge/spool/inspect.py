"""Inspection of spool files without changing them, even while a node runs."""

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
    """A short report on one spool."""

    path: str
    """Folder of the spool."""
    device_id: str
    spool_id: str
    pending: int
    """Sequences that wait for the server, gaps included."""
    oldest_age_seconds: float | None
    """Age of the oldest waiting prediction, without the time the machine was off. None: unknown."""
    bytes: int
    """Size on the disk, including the write-ahead log."""
    in_use_by: str | None
    """The process that holds the spool. None: no process does."""
    set_aside: Sequence[str]
    """Names of the damaged files beside the spool."""
    problem: str | None
    """Damage that prevents a full report until the spool is repaired. None: there is none."""


@dataclass(frozen=True, slots=True)
class Details:
    """A detailed report on one spool."""

    summary: SpoolSummary
    acknowledged: int
    """The last sequence that the server is known to have committed."""
    sent_through: int | None
    """Every sequence up to and including this one may have been sent. None: not recorded."""
    first_pending: int | None
    last_pending: int | None
    predictions: int
    """Number of pending predictions."""
    gaps: Mapping[str, int]
    """Number of pending sequences that were given up, by reason."""
    bytes_in_use: int
    """Bytes in use in the spool file."""
    bytes_taken: int
    """Size of the spool file; the difference is free for more predictions."""
    next: Sequence[Row] = field(repr=False)
    """The first waiting predictions."""


@dataclass(frozen=True, slots=True)
class SpoolCheck:
    """The result of reading and checking a whole spool file."""

    path: str
    device_id: str | None
    spool_id: str | None
    predictions: int
    """Number of readable predictions."""
    gap_sequences: int
    """Number of sequences that are declared lost."""
    damaged: Sequence[tuple[int, int]]
    """Runs of sequences that cannot be read and are not declared as gaps yet."""
    faults: Sequence[str]
    """Faults of the file as a whole."""

    @property
    def is_sound(self) -> bool:
        """True if the file has neither faults nor damaged sequences."""
        return not self.damaged and not self.faults


def file_at(path: Path) -> Path:
    """Return the spool file at a path, which may be a folder or the file itself.

    Raises:
        SightlineError: there is no spool (`SPOOL_NOT_FOUND`).
    """
    file = path / FILE_NAME if path.is_dir() else path
    has_superblock = file.name == FILE_NAME and SuperblockFile(file.parent).path.exists()
    if file.exists() or has_superblock:
        return file
    hint = "a folder with a spool.db, or a file that was set aside"
    raise invalid("path", f"must be {hint} (got {str(path)!r})", reason="SPOOL_NOT_FOUND")


def below(folder: Path) -> list[Path]:
    """Return the spool files in a folder and its subfolders."""
    return sorted(folder.rglob(FILE_NAME))


def summary(path: Path) -> SpoolSummary:
    """Return a short report on a spool file."""
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
        aside.names(aside.set_aside_files(path.parent)) if path.name == FILE_NAME else [],
        problem,
    )


def details(path: Path, count: int) -> Details:
    """Return a detailed report on a spool file with its next predictions.

    Args:
        path: the spool file.
        count: number of predictions to return at most.
    """
    superblock, spool_summary = superblock_beside(path), summary(path)
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
        identity, (in_use, allocated) = reader.identity, reader.pages()
    return Details(
        spool_summary,
        identity.acknowledged,
        superblock.sent if superblock else None,
        identity.acknowledged + 1 if identity.pending else None,
        identity.last if identity.pending else None,
        predictions,
        dict(gaps),
        in_use,
        allocated,
        rows[:count],
    )


def verify(path: Path) -> SpoolCheck:
    """Read a whole spool file and check every checksum.

    Raises:
        SightlineError: a later version wrote the file (`SPOOL_TOO_NEW`).
        OSError, sqlite3.Error: the file cannot be read at all.
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
    """Open a spool file or, if it is damaged, a temporary salvaged copy of it.

    Raises:
        DamagedError: the identity of the spool is lost.
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
    """Salvage a spool file into a temporary file.

    Raises:
        DamagedError: the identity of the spool is lost.
    """
    known = identity_of(path)
    if known is None:
        raise DamagedError("its identity is lost, in the file and in the superblock")
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        target = Path(folder) / FILE_NAME
        salvage(path, target, known, NO_LIMITS, time.time())
        with closing(SpoolReader(target)) as reader:
            yield reader


def identity_of(path: Path) -> Identity | None:
    """Return the identity of a spool from the file, its superblock, or the remains of the file."""
    superblock = superblock_beside(path)
    recorded = superblock.identity if superblock else None
    try:
        with closing(SpoolReader(path)) as reader:
            return joined(reader.identity, recorded)
    except SUSPICIOUS as error:
        own = error.identity if isinstance(error, DamagedError) else None
    return joined(own, recorded) if own else recorded or identity_in(path)


def superblock_beside(path: Path) -> Superblock | None:
    """Return the superblock of a spool file. Files that were set aside have none."""
    return SuperblockFile(path.parent).read() if path.name == FILE_NAME else None


def _early_end(identity: Identity, superblock: Superblock | None) -> list[str]:
    recorded = superblock.identity if superblock else None
    if recorded is None or recorded.spool_id != identity.spool_id or recorded.last <= identity.last:
        return []
    return [f"it ends at sequence {identity.last}, the superblock records {recorded.last}"]


def _read_through(reader: SpoolReader) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return the numbers of predictions and of lost sequences, and the missing runs."""
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
        remains = unnamed(path)
        return SpoolCheck(
            str(path), None, None, remains[1] if remains else 0, 0, [], [*faults, str(error)]
        )
    runs = [(gap.first, gap.last) for gap in gaps if gap.reason is GapReason.SPOOL_DAMAGED]
    lost -= sum(last - first + 1 for first, last in runs)
    return SpoolCheck(str(path), identity.device_id, identity.spool_id, rows, lost, runs, faults)
