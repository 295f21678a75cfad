"""Repairs a spool by hand: what a node does by itself when it starts, and older files, too."""

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
    """What a repair has done."""

    path: str
    """The file that was repaired."""
    device_id: str
    spool_id: str
    spool: str
    """Folder of the spool that has the predictions now."""
    predictions: int
    """How many they are."""
    lost: Sequence[Lost]
    """What could not be read, by sequence; declared as gaps."""
    was_damaged: bool


def repair(path: Path, device_id: str | None, spool_id: str | None) -> RepairResult:
    """Put what is readable in a file into a sound spool; what is not becomes gaps.

    Args:
        path: a spool file, or one that was set aside.
        device_id: whose it is, where nothing says so any more.
        spool_id: which it was, where nothing says so any more.

    Raises:
        SightlineError: a process holds the folder (`SPOOL_LOCKED`); the file was salvaged before
            (`SPOOL_SALVAGED`); nothing says which spool it was (`SPOOL_UNKNOWN`), or it is the one
            that is in use (`SPOOL_IN_PLACE`).
        OSError, sqlite3.Error: the disk does not do it.
    """
    if path.name == FILE_NAME:
        return _in_place(path, device_id, spool_id)
    if path.name.startswith("spool.salvaged-"):
        raise _refused(
            "SPOOL_SALVAGED",
            f"{path} was salvaged when it was set aside: a second time could log twice what moved "
            "to another spool since. `sightline spool export` shows what is in it.",
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
            f"nothing says which spool {path} was: rename it to spool.damaged-1.db and repair that",
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
        found = [_by_sequence(one, identity.last) for one in lost]
        was_damaged = bool(spool.damaged or lost)
    finally:
        spool.close()
    folder = str(path.parent)
    return RepairResult(
        str(path), identity.device_id, identity.spool_id, folder, rows, found, was_damaged
    )


def _apart(path: Path, device_id: str | None, spool_id: str | None) -> RepairResult:
    live = path.with_name(FILE_NAME)
    own = identity_of(live) if live.exists() or SuperblockFile(path.parent).path.exists() else None
    known = identity_of(path) or _named(path, own.device_id if own else device_id, spool_id)
    if own is not None and own.spool_id == known.spool_id:
        raise _refused(
            "SPOOL_IN_PLACE",
            f"{path} is of the spool that {path.parent} has now: what it holds is there, or was",
        )
    fork, done = salvage_apart(path, known, NO_LIMITS, time.time())
    aside.set_aside(path, is_salvaged=True)
    return RepairResult(
        str(path),
        known.device_id,
        known.spool_id,
        str(fork),
        done.rows,
        done.lost,
        was_damaged=True,
    )


def _named(path: Path, device_id: str | None, spool_id: str | None) -> Identity:
    """Return the identity that a person gives to a file that has lost its own."""
    if device_id is None or spool_id is None:
        raise _unknown(path)
    tag_and_count = unnamed(path)
    is_of_it = tag_and_count is not None and tag_and_count[0] == tag_of(spool_id)
    if tag_and_count is not None and tag_and_count[1] > 1 and not is_of_it:
        raise _refused("SPOOL_UNKNOWN", f"{path} is not of spool {spool_id}: its checksums differ")
    return replace(Identity(device_id, spool_id), unbound=0 if is_of_it else _ANY)


def _by_sequence(lost: Lost, last: int) -> Lost:
    """Return what a spool reports by ordinal; before the first, ordinal 0 is the last sequence."""
    return replace(lost, first=lost.first + last, last=lost.last + last)


def _unknown(path: Path) -> SightlineError:
    return _refused(
        "SPOOL_UNKNOWN",
        f"nothing says any more which spool {path} was: give --device-id and --spool-id, as the "
        "rows that the server has of it show them (its latest spool_id but one, as a rule)",
    )


def _refused(reason: str, message: str) -> SightlineError:
    return SightlineError(grpc.StatusCode.FAILED_PRECONDITION, reason, message)
