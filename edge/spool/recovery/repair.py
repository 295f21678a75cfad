"""Manual repair of a spool, as a node does when it starts, and of files that were set aside."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from edge.spool.caps import Lost
from edge.spool.directories import FILE_NAME
from edge.spool.identity import Identity
from edge.spool.inspect import NO_LIMITS, identity_of
from edge.spool.lock import SpoolLock
from edge.spool.recovery import aside
from edge.spool.recovery.salvage import salvage_apart, unnamed
from edge.spool.rows import tag_of
from edge.spool.spool import Spool
from edge.spool.superblock import SuperblockFile
from servicekit.errors import SightlineError

_PORTION = 10_000
_ANY = 1 << 62


@dataclass(frozen=True, slots=True)
class RepairResult:
    """The result of a repair."""

    path: str
    """The repaired file."""
    device_id: str
    spool_id: str
    spool: str
    """Folder of the spool that now holds the predictions."""
    predictions: int
    """Number of these predictions."""
    lost: Sequence[Lost]
    """Runs that could not be read, by sequence, declared as gaps."""
    was_damaged: bool


def repair(path: Path, device_id: str | None, spool_id: str | None) -> RepairResult:
    """Move the readable predictions of a file to a sound spool; the others become gaps.

    Args:
        path: a spool file, or one that was set aside.
        device_id: its device, used if the file has lost its identity.
        spool_id: its spool_id, used if the file has lost its identity.

    Raises:
        SightlineError: a process holds the folder (`SPOOL_LOCKED`), the file was salvaged before
            (`SPOOL_SALVAGED`), its identity is lost (`SPOOL_UNKNOWN`), or it belongs to the spool
            that is in use (`SPOOL_IN_PLACE`).
        OSError, sqlite3.Error: the disk failed.
    """
    if path.name == FILE_NAME:
        return _in_place(path, device_id, spool_id)
    if path.name.startswith("spool.salvaged-"):
        raise _refused(
            "SPOOL_SALVAGED",
            f"{path} was salvaged when it was set aside; salvaging it again could log predictions "
            "twice. Run `sightline spool export` to see its contents.",
        )
    lock = SpoolLock(path.parent)
    try:
        return _apart(path, device_id, spool_id)
    finally:
        lock.release()


def _in_place(path: Path, device_id: str | None, spool_id: str | None) -> RepairResult:
    known = identity_of(path)
    if known is None and spool_id is not None:
        raise _refused(
            "SPOOL_UNKNOWN",
            f"the identity of {path} is lost: rename it to spool.damaged-1.db and repair that",
        )
    device = known.device_id if known else device_id
    if device is None:
        raise _unknown(path)
    lost: list[Lost] = []
    spool = Spool(path.parent, device, NO_LIMITS, lost.append)
    try:
        position, rows = spool.identity.acknowledged, 0
        while entries := spool.read(spool.identity.spool_id, position, _PORTION, 1 << 24):
            position = entries[-1].sequence
            rows += sum(not hasattr(entry, "reason") for entry in entries)
        identity = spool.identity
        lost_sequences = [_by_sequence(run, identity.last) for run in lost]
        was_damaged = bool(spool.damaged or lost)
    finally:
        spool.close()
    folder = str(path.parent)
    return RepairResult(
        str(path), identity.device_id, identity.spool_id, folder, rows, lost_sequences, was_damaged
    )


def _apart(path: Path, device_id: str | None, spool_id: str | None) -> RepairResult:
    live = path.with_name(FILE_NAME)
    own = identity_of(live) if live.exists() or SuperblockFile(path.parent).path.exists() else None
    known = identity_of(path) or _named(path, own.device_id if own else device_id, spool_id)
    if own is not None and own.spool_id == known.spool_id:
        raise _refused(
            "SPOOL_IN_PLACE",
            f"{path} belongs to the spool that is now in {path.parent}, which holds or held its "
            "predictions: there is nothing to repair",
        )
    fork, salvaged = salvage_apart(path, known, NO_LIMITS, time.time())
    aside.set_aside(path, is_salvaged=True)
    return RepairResult(
        str(path),
        known.device_id,
        known.spool_id,
        str(fork),
        salvaged.rows,
        salvaged.lost,
        was_damaged=True,
    )


def _named(path: Path, device_id: str | None, spool_id: str | None) -> Identity:
    """Return the identity that the user specifies for a file that has lost its own."""
    if device_id is None or spool_id is None:
        raise _unknown(path)
    tag_and_count = unnamed(path)
    matches = tag_and_count is not None and tag_and_count[0] == tag_of(spool_id)
    if tag_and_count is not None and tag_and_count[1] > 1 and not matches:
        raise _refused(
            "SPOOL_UNKNOWN", f"{path} does not belong to spool {spool_id}: the checksums differ"
        )
    return replace(Identity(device_id, spool_id), unbound=0 if matches else _ANY)


def _by_sequence(lost: Lost, last: int) -> Lost:
    """Return a run with its ordinals converted to sequences; ordinal 0 is the last sequence."""
    return replace(lost, first=lost.first + last, last=lost.last + last)


def _unknown(path: Path) -> SightlineError:
    return _refused(
        "SPOOL_UNKNOWN",
        f"the identity of {path} is lost: give --device-id and --spool-id, as the server's rows of "
        "this spool show them (usually the device's second latest spool_id)",
    )


def _refused(reason: str, message: str) -> SightlineError:
    return SightlineError(grpc.StatusCode.FAILED_PRECONDITION, reason, message)
