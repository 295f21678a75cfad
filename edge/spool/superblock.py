"""The superblock of a spool: its last committed state, in a file beside the database.

SQLite silently drops the end of a write-ahead log that is damaged or truncated. Rows that were
durable are then gone, and their sequences would be assigned again to other predictions, which the
server would take for duplicates. So each committed change is recorded here as well, before the
caller learns of it, in a file that damage to the database does not reach.

The superblock is not synced after each change. It survives the death of the process but not a power
failure; after that it is older than the database and proves nothing.
"""

import json
import logging
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edge.spool import identity as identities
from edge.spool.identity import DamagedError, Identity

logger = logging.getLogger(__name__)

FILE_NAME = "spool.mark"
_SIZE = 4096  # allocated once, so that a full disk does not matter; an identity fits into it
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True)
class Superblock:
    """The last known state of a spool, readable without its database."""

    identity: Identity
    sent: int
    """Every sequence up to and including this one may have been sent to a server."""
    location: "FileLocation"
    """Location of the spool's database. That of a copy usually differs."""
    reading: "SpoolClockReading"
    """Reading of the spool's clock."""

    @property
    def is_of_this_boot(self) -> bool:
        """True if the machine has not rebooted since: then this is the latest superblock."""
        return self.reading.boot != "" and self.reading.boot == boot_id()


class FileLocation(NamedTuple):
    """Location of a file, as far as the machine identifies it. A cloned machine has the same."""

    inode: int = 0
    device: int = 0
    """Number of the file system; it may change with a reboot. 0: not known."""
    machine: str = ""
    """`/etc/machine-id`. Empty: not known."""


class SpoolClockReading(NamedTuple):
    """A simultaneous reading of the spool's clock and the machine's (see `edge.spool.clock`)."""

    age: float
    """The spool's clock, in seconds."""
    steady: float
    """The monotonic clock of the machine, in seconds."""
    boot: str
    """Boot ID of the machine. Empty: not known."""


class SuperblockFile:
    """The file that holds the superblock. One process at a time writes to it.

    Args:
        directory: the spool's folder.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._descriptor: int | None = None

    def write(self, superblock: Superblock, *, sync: bool = False) -> None:
        """Write the superblock; delete the file if that fails, since it would be out of date.

        Args:
            superblock: the state to record.
            sync: True: fsync the file before returning.
        """
        text, check = identities.encode(superblock.identity)
        inode, *more = superblock.location
        whole = json.dumps([text, check, superblock.sent, inode, *superblock.reading, *more])
        line = f"{zlib.crc32(whole.encode()):08x} {whole}".encode()
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            os.pwrite(self._descriptor, line.ljust(_SIZE - 1) + b"\n", 0)
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            logger.debug("spool: cannot write the superblock %s: %s", self.path, error)
            self.remove()

    def read(self) -> Superblock | None:
        """Return the superblock, or None if there is none that can be read.

        Raises:
            SightlineError: a later version wrote it (`SPOOL_TOO_NEW`).
        """
        try:
            check, _, whole = self.path.read_bytes().rstrip().decode().partition(" ")
            if f"{zlib.crc32(whole.encode()):08x}" != check:
                return None
            text, identity_check, sent, inode, *more = json.loads(whole)
            identity = identities.decode(text, identity_check, self.path)
            # Earlier versions recorded only the inode of the location.
            return Superblock(
                identity, sent, FileLocation(inode, *more[3:]), SpoolClockReading(*more[:3])
            )
        except (OSError, ValueError, TypeError, DamagedError):
            return None

    def close(self) -> None:
        """Close the file. In a forked child this leaves the parent's file open for the parent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Delete the file."""
        self.close()
        with suppress(OSError):
            self.path.unlink()


def boot_id() -> str:
    """Return the ID of the machine's current boot, or an empty string if it has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def location_of(path: Path) -> FileLocation:
    """Return the location of a file."""
    try:
        machine = _MACHINE_ID.read_text().strip()
    except OSError:
        machine = ""
    if not path.exists():
        return FileLocation(machine=machine)
    stat = path.stat()
    return FileLocation(stat.st_ino, stat.st_dev, machine)


def is_elsewhere(superblock: Superblock, location: FileLocation) -> bool:
    """Return True if a file is not the one that the superblock describes."""
    old = superblock.location
    return (
        old.inode != location.inode
        or bool(old.machine and location.machine and old.machine != location.machine)
        or bool(superblock.is_of_this_boot and old.device and old.device != location.device)
    )


def sent_through(superblock: Superblock | None, identity: Identity, location: FileLocation) -> int:
    """Return the last sequence of this file that a server may have received.

    Without a superblock of this boot and of this very file, that is the last sequence of all: the
    latest superblock may not have reached the disk, or the file may be a copy of a spool that was
    sent.
    """
    if (
        superblock is None
        or not superblock.is_of_this_boot
        or superblock.identity.spool_id != identity.spool_id
        or superblock.identity.last > identity.last
        or is_elsewhere(superblock, location)
    ):
        return identity.last
    return max(superblock.sent, identity.acknowledged)
