"""How far a spool has come, kept beside its file, where damage to the file does not reach it.

SQLite drops the end of a write-ahead log that is damaged or cut off without a word: what was
durable is gone, and its sequences would be given out again, for other predictions, which the server
would take for duplicates. So each change that was committed is noted here as well, before anyone
hears of it. The note is not synced: it outlives the process, not a power failure; then it is older
than the file, and says nothing.
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
class Note:
    """What is known of a spool without its file."""

    identity: Identity
    sent: int
    """Every sequence up to this one may have been sent to a server."""
    place: "Place"
    """Where the spool's file was: that of a copy is elsewhere, as a rule."""
    reading: "Reading"
    """What the spool's clock said."""

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the machine has been up since: then it is what was noted last."""
        return self.reading.boot != "" and self.reading.boot == boot_id()


class Place(NamedTuple):
    """Where a file is, as far as the machine says. A copy of the whole machine says the same."""

    inode: int = 0
    device: int = 0
    """Number of the file system; another one after a reboot, perhaps. 0: not known."""
    machine: str = ""
    """`/etc/machine-id`. Empty: not known."""


class Reading(NamedTuple):
    """What the clocks said at one moment (see `edge.spool.clock`)."""

    age: float
    """The spool's clock, in seconds."""
    steady: float
    """The steady clock of the machine, in seconds."""
    boot: str
    """Which boot that was. Empty: not known."""


class Mark:
    """The file that the note is in. One process at a time writes to it.

    Args:
        directory: of the spool.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._descriptor: int | None = None

    def write(self, note: Note, *, sync: bool = False) -> None:
        """Note how far the spool has come. A note that cannot be written is no longer there.

        Args:
            note: what to note.
            sync: return when it is on the disk.
        """
        text, check = identities.encode(note.identity)
        inode, *more = note.place
        whole = json.dumps([text, check, note.sent, inode, *note.reading, *more])
        line = f"{zlib.crc32(whole.encode()):08x} {whole}".encode()
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            os.pwrite(self._descriptor, line.ljust(_SIZE - 1) + b"\n", 0)
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            logger.debug("spool: cannot be noted in %s: %s", self.path, error)
            self.remove()

    def read(self) -> Note | None:
        """Return the note; None: there is none that can be read.

        Raises:
            SightlineError: a later version wrote it (`SPOOL_TOO_NEW`).
        """
        try:
            check, _, whole = self.path.read_bytes().rstrip().decode().partition(" ")
            if f"{zlib.crc32(whole.encode()):08x}" != check:
                return None
            text, identity_check, sent, inode, *more = json.loads(whole)
            identity = identities.decode(text, identity_check, self.path)
            # Of an earlier version: it said no more of the place than the inode.
            return Note(identity, sent, Place(inode, *more[3:]), Reading(*more[:3]))
        except (OSError, ValueError, TypeError, DamagedError):
            return None

    def close(self) -> None:
        """Close the file; in a forked process, lets go of what the parent goes on writing to."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Delete the file."""
        self.close()
        with suppress(OSError):
            self.path.unlink()


def boot_id() -> str:
    """Return what tells this boot of the machine from others; empty: it does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def place_of(path: Path) -> Place:
    """Return where a file is."""
    try:
        machine = _MACHINE_ID.read_text().strip()
    except OSError:
        machine = ""
    if not path.exists():
        return Place(machine=machine)
    stat = path.stat()
    return Place(stat.st_ino, stat.st_dev, machine)


def is_elsewhere(note: Note, place: Place) -> bool:
    """Return True if a file is not the one that the note describes."""
    was = note.place
    return (
        was.inode != place.inode
        or bool(was.machine and place.machine and was.machine != place.machine)
        or bool(note.is_of_this_boot and was.device and was.device != place.device)
    )


def sent_through(note: Note | None, identity: Identity, place: Place) -> int:
    """Return up to where a server may have the predictions of a spool, as they are in this file.

    Without a note of this boot and of this very file, that may be all: what was noted last may not
    have come to the disk, or the file may be a copy, whose original was sent.
    """
    if (
        note is None
        or not note.is_of_this_boot
        or note.identity.spool_id != identity.spool_id
        or note.identity.last > identity.last
        or is_elsewhere(note, place)
    ):
        return identity.last
    return max(note.sent, identity.acknowledged)
