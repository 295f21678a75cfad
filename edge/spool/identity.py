"""Whose spool it is and how far it goes, and how that is written down."""

import json
import zlib
from dataclasses import dataclass
from functools import lru_cache

import grpc

from edge.spool.lineage import Lineage, SpoolOpening, agreement
from servicekit.errors import SightlineError

VERSION = 3
"""Version 1 had checksums that said nothing of the spool, version 2 no lineage; their files go on
as version 3."""


class DamagedError(Exception):
    """The file holds something that was not written to it.

    Attributes:
        identity: what is certain of it all the same. None: nothing.
    """

    def __init__(self, message: str, identity: "Identity | None" = None) -> None:
        super().__init__(message)
        self.identity = identity


class EmptyError(DamagedError):
    """The file holds nothing."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose spool it is, and how far its sequences go."""

    device_id: str
    spool_id: str
    """A UUID, born with the spool."""
    acknowledged: int = 0
    """Every sequence up to this one is committed by the server and deleted here."""
    last: int = 0
    """The last sequence that was given out."""
    unbound: int = 0
    """Sequences up to this one have checksums of version 1."""
    lineage: Lineage = ()
    """In which openings the sequences were given out. Empty: none was, or it is not known."""

    @property
    def pending(self) -> int:
        """How many sequences still wait for the server."""
        return self.last - self.acknowledged

    @property
    def root(self) -> str:
        """The generation of what was spooled before version 3: the same in each copy."""
        return self.spool_id


@lru_cache(maxsize=1)  # the database and the note say the same, one after the other
def encode(identity: Identity) -> tuple[str, int]:
    """Return an identity as text, and the checksum of that."""
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
    """Return what `encode` was given.

    Args:
        text: of the identity.
        check: its checksum.
        where: names the file in the error.

    Raises:
        DamagedError: it is not what was written.
        SightlineError: a later version wrote it (`SPOOL_TOO_NEW`).
    """
    if not isinstance(text, str) or zlib.crc32(text.encode()) != check:
        raise DamagedError("its identity is not what was written")
    fields = json.loads(text)
    version = fields.pop("version")
    if version > VERSION:
        raise SightlineError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "SPOOL_TOO_NEW",
            f"spool_dir: {where} was made by a later version of sightline",
        )
    if version == 1:
        fields["unbound"] = fields["last"]
    if version < VERSION:
        fields["lineage"] = [(fields["spool_id"], 0)] if fields["last"] else []
    fields["lineage"] = tuple(SpoolOpening(*one) for one in fields["lineage"])
    return Identity(**fields)


def are_branches(one: Identity, other: Identity) -> bool:
    """Say whether two copies of a spool have gone on, each for itself, from what they share."""
    if one.spool_id != other.spool_id:
        return False
    agreed = agreement(one.lineage, one.root, one.last, other.lineage, other.last)
    return agreed is not None and agreed.through < min(one.last, other.last)


def joined(first: Identity, *others: Identity | None) -> Identity:
    """Return the furthest that is known of a spool.

    What is said of other spools, and of copies that have gone on from before `first`, is left out.
    """
    known = [one for one in others if one is not None and one.spool_id == first.spool_id]
    same = [first, *(one for one in known if not are_branches(first, one))]
    return Identity(
        first.device_id,
        first.spool_id,
        max(one.acknowledged for one in same),
        max(one.last for one in same),
        max(one.unbound for one in same),
        max(same, key=lambda one: (one.last, len(one.lineage))).lineage,
    )
