"""The durable queue between the writer thread and the shipper thread: one spool file, kept going.

It holds the folder against other processes, salvages a damaged file, applies the caps, and
translates between the two threads' ways to count: the writer counts ordinals (everything logged
since this object was made), the shipper counts sequences (everything ever in the file).
"""

import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from edge.spool import caps as spool_caps
from edge.spool import superblock as superblocks
from edge.spool.caps import Lost, SpoolLimits
from edge.spool.clock import SpoolClock
from edge.spool.directories import FILE_NAME
from edge.spool.entries import Dropped, Entry, GapReason
from edge.spool.file import SpoolFile
from edge.spool.identity import Identity
from edge.spool.lock import SpoolLock
from edge.spool.opened import Opened
from edge.spool.opening import Opener
from edge.spool.reader import SUSPICIOUS, is_damage
from edge.spool.recovery import aside
from edge.spool.superblock import Superblock, SuperblockFile

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class ReplacedError(Exception):
    """The spool that a sequence belonged to is no longer this one."""


class Spool:
    """A spool folder, held by this process. Safe to use from several threads.

    Args:
        directory: made if it is missing; one process at a time.
        device_id: whose spool it is.
        limits: when to give up the oldest.
        on_lost: called with what was in the spool and is given up, by ordinal (below 1: logged
            before this process began), whoever caused it; it must not call back.
        wall: Unix seconds.
        steady: seconds that nobody sets.

    Attributes:
        spooled: ordinal of the last prediction in the file.
        sent_through: every sequence up to this one may have been sent to a server, no later one.
        damaged: how many files were found damaged.

    Raises:
        SightlineError: another process holds it (`SPOOL_LOCKED`), it belongs to another device
            (`SPOOL_OF_ANOTHER_DEVICE`), or a later version made it (`SPOOL_TOO_NEW`).
        OSError, sqlite3.Error: the folder cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        device_id: str,
        limits: SpoolLimits,
        on_lost: Callable[[Lost], None],
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spooled = 0
        self.damaged = 0
        self._directory = directory
        self._limits = limits
        self._on_lost = on_lost
        self._wall = wall
        self._opener = Opener(directory, device_id, limits)
        self._lock = threading.Lock()
        self._damage: Exception | None = None
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held = SpoolLock(directory)
        self._superblock_file = SuperblockFile(directory)
        try:
            superblock = self._superblock_file.read()
            location = superblocks.location_of(self._opener.path)
            opened = self._opener.open(superblock, wall())
            self._file = opened.file
            latest = self._file.spooled_at(last=True)
            self._clock = SpoolClock(superblock, latest, wall(), steady=steady)
            self.sent_through = superblocks.sent_through(superblock, self.identity, location)
            self._begin(opened)
        except BaseException:
            self._held.release()
            raise

    @property
    def identity(self) -> Identity:
        """Whose spool it is and how far it goes, as of the last change."""
        return self._file.identity

    @property
    def opened_at(self) -> int:
        """The last sequence that was given out before this object opened the file."""
        return self._file.opened_at

    @property
    def committed(self) -> int:
        """Ordinal of the last prediction that the server has; below 0: of an earlier process."""
        return self.spooled - self.identity.pending

    def append(self, entries: Sequence[bytes | Dropped]) -> None:
        """Keep what was logged, in order, and give up the oldest where a cap says so.

        Returns when all of it is on the disk.

        Raises:
            OSError, sqlite3.Error: nothing of it was kept.
        """
        with self._lock:
            lost = self._change(lambda file: self._append(file, entries))
            self.spooled += sum(e.count if isinstance(e, Dropped) else 1 for e in entries)
            self._report(lost)

    def maintain(self) -> None:
        """Give up what is too old, and unused space to the disk. To be called now and then.

        Raises:
            OSError, sqlite3.Error: not all of it was done.
        """
        with self._lock:
            if self._limits.max_age_seconds:
                cutoff = self._clock.now() - self._limits.max_age_seconds
                self._report(
                    self._change(lambda file: spool_caps.evict_expired(file, cutoff, self._wall()))
                )
            self._change(spool_caps.shrink)

    def read(self, spool_id: str, after: int, max_entries: int, max_bytes: int) -> list[Entry]:
        """Return what comes after a sequence, oldest first and without holes; empty: nothing.

        Args:
            spool_id: the spool that `after` counts in.
            after: a sequence, >= `identity.acknowledged`.
            max_entries: about how many rows, and how many gaps, at most, >= 1.
            max_bytes: of predictions; one is returned whatever its size.

        Raises:
            ReplacedError: the spool is another by now.
            OSError, sqlite3.Error: it cannot be read.
        """

        def find(file: SpoolFile) -> tuple[list[Entry], list[tuple[int, int]]]:
            return file.read(after, max_entries, max_bytes)

        with self._lock:
            entries, missing = self._change(find, spool_id)
            if missing:
                logger.error("spool %s: damaged at sequences %s", spool_id, missing)
                self._give_up(spool_id, missing, GapReason.SPOOL_DAMAGED)
                entries, _ = self._change(find, spool_id)
        return entries

    def acknowledge(self, spool_id: str, through: int) -> int:
        """Delete what the server has committed.

        Returns:
            How many predictions that were; gaps do not count.

        Raises:
            ReplacedError, OSError, sqlite3.Error: as `read`.
        """

        def change(file: SpoolFile) -> int:
            # A power failure may undo it: the server then says again how far it is.
            with file.transaction(durable=False):
                return file.acknowledge(through)

        with self._lock:
            return self._change(change, spool_id)

    def sending(self, spool_id: str, through: int) -> None:
        """Take note, before they are sent, that a server may have sequences up to this one.

        Raises:
            ReplacedError, OSError, sqlite3.Error: as `read`.
        """

        def record(_: SpoolFile) -> None:
            self.sent_through = max(self.sent_through, through)

        with self._lock:
            self._change(record, spool_id)

    def give_up(self, spool_id: str, sequence: int, reason: GapReason) -> None:
        """Turn one prediction into a gap.

        Raises:
            ReplacedError, OSError, sqlite3.Error: as `read`.
        """
        with self._lock:
            self._give_up(spool_id, [(sequence, sequence)], reason)

    def rewind(self, spool_id: str, through: int) -> None:
        """Owe the server again, as a gap, what it confirmed and no longer has.

        Raises:
            ReplacedError, OSError, sqlite3.Error: as `read`.
        """

        def change(file: SpoolFile) -> None:
            with file.transaction():
                file.rewind(through, self._wall())

        with self._lock:
            self._change(change, spool_id)

    def renew(self, spool_id: str, *, is_derived: bool = False) -> None:
        """Move what is pending to a new spool_id, where it counts from 1.

        Args:
            spool_id: the old one.
            is_derived: see `SpoolFile.renew`.

        Raises:
            ReplacedError, OSError, sqlite3.Error: as `read`.
        """

        def change(file: SpoolFile) -> None:
            with file.transaction():
                file.renew(is_derived=is_derived)
            self.sent_through = 0

        with self._lock:
            self._change(change, spool_id)

    def close(self) -> None:
        """Close the file and lets another process in."""
        with self._lock:
            self._file.close()
            self._superblock_file.close()
            self._held.release()

    def remove(self) -> None:
        """Delete the folder, where it holds nothing but an empty spool, and lets go of it."""
        with self._lock:
            self._file.close()
            aside.delete(self._directory / FILE_NAME)
            self._superblock_file.remove()
            self._held.path.unlink(missing_ok=True)
            with suppress(OSError):  # a file that was set aside stays
                self._directory.rmdir()
            self._held.release()

    def release_in_child(self) -> None:
        """Let go, in a forked child, of the lock that belongs to the parent.

        The connection must be neither used nor closed here: closing it would move the write-ahead
        log under the parent's feet. So the caller keeps this object for ever.
        """
        self._superblock_file.close()
        self._held.release()

    def _change(self, change: Callable[[SpoolFile], _T], spool_id: str | None = None) -> _T:
        """Do something with the file; with a salvaged one where this one is damaged."""
        before = self._recorded_state()
        try:
            done = change(self._current(spool_id))
        except SUSPICIOUS as error:
            if not is_damage(error):
                raise
            self._recover(error)
            done = change(self._current(spool_id))
        if self._recorded_state() != before:
            self._write_superblock()
        return done

    def _current(self, spool_id: str | None) -> SpoolFile:
        if self._damage is not None:
            self._recover(self._damage)
        if spool_id not in (None, self.identity.spool_id):
            raise ReplacedError
        return self._file

    def _recover(self, error: Exception) -> None:
        self._damage = error  # until it is repaired, which a full disk may keep from happening
        with suppress(sqlite3.Error):
            self._file.close()
        opened = self._opener.recovery.recover(error, self.identity, self._wall(), is_exact=True)
        self._file, self._damage = opened.file, None
        self._begin(opened)

    def _begin(self, opened: Opened) -> None:
        """Go on with a file that was just opened."""
        self._location = superblocks.location_of(self._opener.path)
        self._write_superblock(sync=True)
        if opened.damage:
            self.damaged += 1
            self._report(opened.lost)

    def _recorded_state(self) -> tuple[Identity, int]:
        return self.identity, self.sent_through

    def _write_superblock(self, *, sync: bool = False) -> None:
        self._superblock_file.write(
            Superblock(*self._recorded_state(), self._location, self._clock.reading()), sync=sync
        )

    def _append(self, file: SpoolFile, entries: Sequence[bytes | Dropped]) -> list[Lost]:
        cap, reason = spool_caps.byte_cap(
            file, self._limits, shutil.disk_usage(self._directory).free
        )
        with file.transaction():
            file.append(entries, self._clock.now(), self._wall())
            return spool_caps.evict_bytes(file, cap, reason, self._wall())

    def _give_up(self, spool_id: str, runs: Sequence[tuple[int, int]], reason: GapReason) -> None:
        def change(file: SpoolFile) -> list[Lost]:
            with file.transaction():
                now = self._wall()
                return [spool_caps.give_up(file, *run, reason, now) for run in runs]

        self._report(self._change(change, spool_id))

    def _report(self, lost: Sequence[Lost]) -> None:
        shift = self.spooled - self.identity.last
        for one in lost:
            self._on_lost(replace(one, first=one.first + shift, last=one.last + shift))
