"""The identity of a spool: its device, its id and its range of sequences, and their encoding."""

import json
import zlib
from dataclasses import dataclass
from functools import lru_cache

import grpc

from edge.spool.lineage import Lineage, SpoolOpening, agreement
from servicekit.errors import SightlineError

VERSION = 3
"""Version of the format. Version 1 had checksums without the spool_id, version 2 had no lineage.
Files of both are upgraded to version 3."""


class DamagedError(Exception):
    """The contents of a spool file are not what was written.

    Attributes:
        identity: identity of the spool, if it could still be read.
    """

    def __init__(self, message: str, identity: "Identity | None" = None) -> None:
        super().__init__(message)
        self.identity = identity


class EmptyError(DamagedError):
    """The spool file is missing or empty."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The device and id of a spool, and its range of sequences."""

    device_id: str
    spool_id: str
    """A UUID, generated when the spool is created."""
    acknowledged: int = 0
    """Every sequence up to and including this one is committed by the server and deleted here."""
    last: int = 0
    """The last sequence that was assigned."""
    unbound: int = 0
    """Sequences up to and including this one have checksums of version 1."""
    lineage: Lineage = ()
    """The openings in which the sequences were assigned. Empty: none was, or it is not known."""

    @property
    def pending(self) -> int:
        """Number of sequences that wait for the server."""
        return self.last - self.acknowledged

    @property
    def root(self) -> str:
        """The generation of entries spooled before version 3. It is the same in every copy."""
        return self.spool_id


@lru_cache(maxsize=1)  # the database and the superblock store the same text in turn
def encode(identity: Identity) -> tuple[str, int]:
    """Return an identity as JSON text, and the checksum of the text."""
    text = json.dumps(
        {
            "version": VERSION,
            "device_id": identity.device_id,
            "spool_id": identity.spool_id,
            "acknowledged": identity.acknowledged,
            "last": identity.last,
            "unbound": identity.unbound,
            "lineage": identity.lineage,
        }
    )
    return text, zlib.crc32(text.encode())


def decode(text: object, check: object, where: object) -> Identity:
    """Return the identity that `encode` wrote.

    Args:
        text: the encoded identity.
        check: its checksum.
        where: name of the file for the error message.

    Raises:
        DamagedError: the text does not match the checksum.
        SightlineError: a later version wrote it (`SPOOL_TOO_NEW`).
    """
    if not isinstance(text, str) or zlib.crc32(text.encode()) != check:
        raise DamagedError("the checksum of its identity is wrong")
    fields = json.loads(text)
    version = fields.pop("version")
    if version > VERSION:
        raise SightlineError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "SPOOL_TOO_NEW",
            f"spool_dir: {where} was written by a later version of Sightline (format {version}, "
            f"this version reads up to {VERSION}): install that version or a newer one",
        )
    if version == 1:
        fields["unbound"] = fields["last"]
    if version < VERSION:
        fields["lineage"] = [(fields["spool_id"], 0)] if fields["last"] else []
    fields["lineage"] = tuple(SpoolOpening(*item) for item in fields["lineage"])
    return Identity(**fields)


def are_branches(first: Identity, other: Identity) -> bool:
    """Return True if two copies of a spool have diverged: each has entries that the other lacks."""
    if first.spool_id != other.spool_id:
        return False
    agreed = agreement(first.lineage, first.root, first.last, other.lineage, other.last)
    return agreed is not None and agreed.through < min(first.last, other.last)


def joined(first: Identity, *others: Identity | None) -> Identity:
    """Return the furthest known state of a spool.

    Identities of other spools, and of copies that diverged from `first`, are ignored.
    """
    known = [other for other in others if other is not None and other.spool_id == first.spool_id]
    same = [first, *(other for other in known if not are_branches(first, other))]
    return Identity(
        first.device_id,
        first.spool_id,
        max(identity.acknowledged for identity in same),
        max(identity.last for identity in same),
        max(identity.unbound for identity in same),
        max(same, key=lambda identity: (identity.last, len(identity.lineage))).lineage,
    )
