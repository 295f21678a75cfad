"""The durable queue between the writer thread and the shipper thread.

It locks the folder, salvages a damaged file, applies the caps, and converts between two ways of
counting: the writer counts ordinals (all predictions logged since this object was created), the
shipper counts sequences (all entries that were ever in the spool).
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
from edge.spool.recovery.recover import Recovery
from edge.spool.superblock import Superblock, SuperblockFile

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class ReplacedError(Exception):
    """The spool was renewed or replaced, so the sequence belongs to another spool_id."""


class Spool:
    """A spool folder that this process holds. Thread-safe.

    Args:
        directory: the folder, created if it is missing. Only one process may use it at a time.
        device_id: the device that the spool belongs to.
        limits: the limits at which the oldest predictions are given up.
        on_lost: callback invoked with each run that was in the spool and is given up, by ordinal
            (below 1: logged by an earlier process). It must not call methods of this object.
        wall: wall clock, in Unix seconds.
        steady: monotonic clock, in seconds.

    Attributes:
        spooled: ordinal of the last prediction in the file.
        sent_through: every sequence up to and including this one may have been sent to a server,
            and no later one.
        damaged: number of files that were found damaged.
        bytes_in_use: size of the content after the last change, bytes.
        byte_limit: maximum of `bytes_in_use` at the last change: `limits.max_bytes`, or less near
            the reserve of the disk.

    Raises:
        SightlineError: another process holds the folder (`SPOOL_LOCKED`), the spool belongs to
            another device (`SPOOL_OF_ANOTHER_DEVICE`), or a later version wrote it
            (`SPOOL_TOO_NEW`).
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
        self.bytes_in_use, self.byte_limit = 0, limits.max_bytes
        self._directory = directory
        self._limits = limits
        self._on_lost = on_lost
        self._wall = wall
        self._opener = Opener(Recovery(directory, device_id, limits))
        self._lock = threading.Lock()
        self._damage: Exception | None = None
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder_lock = SpoolLock(directory)
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
            self._folder_lock.release()
            raise

    @property
    def identity(self) -> Identity:
        """The identity of the spool as of the last change."""
        return self._file.identity

    @property
    def opened_at(self) -> int:
        """The last sequence that was assigned before this object opened the file."""
        return self._file.opened_at

    @property
    def committed(self) -> int:
        """Ordinal of the last committed prediction; below 0 for one of an earlier process."""
        return self.spooled - self.identity.pending

    def append(self, entries: Sequence[bytes | Dropped]) -> None:
        """Append entries in order, evict the oldest if a cap requires it, and sync to the disk.

        Raises:
            OSError, sqlite3.Error: none of the entries was stored.
        """
        with self._lock:
            lost = self._change(lambda file: self._append(file, entries))
            self.spooled += sum(e.count if isinstance(e, Dropped) else 1 for e in entries)
            self._report(lost)

    def maintain(self) -> None:
        """Evict expired predictions and return unused space to the disk; call it regularly.

        Raises:
            OSError, sqlite3.Error: the maintenance is incomplete.
        """
        with self._lock:
            if self._limits.max_age_seconds:
                cutoff = self._clock.now() - self._limits.max_age_seconds
                self._report(
                    self._change(lambda file: spool_caps.evict_expired(file, cutoff, self._wall()))
                )
            self._change(spool_caps.shrink)

    def read(self, spool_id: str, after: int, max_entries: int, max_bytes: int) -> list[Entry]:
        """Return the entries after a sequence, oldest first and without holes.

        Args:
            spool_id: the spool that `after` belongs to.
            after: a sequence >= `identity.acknowledged`.
            max_entries: limit for the rows, and for the gaps, >= 1.
            max_bytes: limit for the size of the predictions; the first is returned in any case.

        Raises:
            ReplacedError: the spool has another spool_id by now.
            OSError, sqlite3.Error: the spool cannot be read.
        """

        def find(file: SpoolFile) -> tuple[list[Entry], list[tuple[int, int]]]:
            return file.read(after, max_entries, max_bytes)

        with self._lock:
            entries, missing = self._change(find, spool_id)
            if missing:
                logger.error("spool %s: damaged at sequences %s: now gaps", spool_id, missing)
                self._give_up(spool_id, missing, GapReason.SPOOL_DAMAGED)
                entries, _ = self._change(find, spool_id)
        return entries

    def oldest_age(self) -> float | None:
        """Return the age of the oldest waiting prediction, s, without time the machine was off.

        Returns:
            None: no prediction waits, or its age is not known.

        Raises:
            OSError, sqlite3.Error: the spool cannot be read.
        """
        with self._lock:
            spooled_at = self._change(lambda file: file.spooled_at(last=False))
            return None if spooled_at is None else max(0.0, self._clock.now() - spooled_at)

    def acknowledge(self, spool_id: str, through: int) -> int:
        """Delete what the server has committed.

        Returns:
            The number of deleted predictions, without gaps.

        Raises:
            ReplacedError, OSError, sqlite3.Error: see `read`.
        """

        def change(file: SpoolFile) -> int:
            # A power failure may undo this; the server then reports its watermark again.
            with file.transaction(durable=False):
                deleted = file.acknowledge(through)
            self.bytes_in_use, _ = file.pages()
            return deleted

        with self._lock:
            return self._change(change, spool_id)

    def sending(self, spool_id: str, through: int) -> None:
        """Record, before sending, that a server may receive sequences up to this one.

        Raises:
            ReplacedError, OSError, sqlite3.Error: see `read`.
        """

        def record(_: SpoolFile) -> None:
            self.sent_through = max(self.sent_through, through)

        with self._lock:
            self._change(record, spool_id)

    def give_up(self, spool_id: str, sequence: int, reason: GapReason) -> None:
        """Turn one prediction into a gap.

        Raises:
            ReplacedError, OSError, sqlite3.Error: see `read`.
        """
        with self._lock:
            self._give_up(spool_id, [(sequence, sequence)], reason)

    def rewind(self, spool_id: str, through: int) -> None:
        """Declare as a gap what the server confirmed and no longer has.

        Raises:
            ReplacedError, OSError, sqlite3.Error: see `read`.
        """

        def change(file: SpoolFile) -> None:
            with file.transaction():
                file.rewind(through, self._wall())

        with self._lock:
            self._change(change, spool_id)

    def renew(self, spool_id: str, *, is_derived: bool = False) -> None:
        """Move the pending entries to a new spool_id, with sequences that start at 1.

        Args:
            spool_id: the old spool_id.
            is_derived: see `SpoolFile.renew`.

        Raises:
            ReplacedError, OSError, sqlite3.Error: see `read`.
        """

        def change(file: SpoolFile) -> None:
            with file.transaction():
                file.renew(is_derived=is_derived)
            self.sent_through = 0

        with self._lock:
            self._change(change, spool_id)

    def close(self) -> None:
        """Close the file and release the folder."""
        with self._lock:
            self._file.close()
            self._superblock_file.close()
            self._folder_lock.release()

    def remove(self) -> None:
        """Delete the empty spool, and its folder unless other files are in it; release the lock."""
        with self._lock:
            self._file.close()
            aside.delete(self._directory / FILE_NAME)
            self._superblock_file.remove()
            self._folder_lock.path.unlink(missing_ok=True)
            with suppress(OSError):  # files that were set aside stay
                self._directory.rmdir()
            self._folder_lock.release()

    def release_in_child(self) -> None:
        """Release, in a forked child, the lock that the parent holds.

        The child must neither use nor close the connection: closing it would checkpoint the
        write-ahead log that the parent is using. So the caller must keep this object alive.
        """
        self._superblock_file.close()
        self._folder_lock.release()

    def _change(self, change: Callable[[SpoolFile], _T], spool_id: str | None = None) -> _T:
        """Apply a change to the file; if the file is damaged, salvage it and try once more."""
        before = self._recorded_state()
        try:
            result = change(self._current(spool_id))
        except SUSPICIOUS as error:
            if not is_damage(error):
                raise
            self._recover(error)
            result = change(self._current(spool_id))
        if self._recorded_state() != before:
            self._write_superblock()
        return result

    def _current(self, spool_id: str | None) -> SpoolFile:
        if self._damage is not None:
            self._recover(self._damage)
        if spool_id not in (None, self.identity.spool_id):
            raise ReplacedError
        return self._file

    def _recover(self, error: Exception) -> None:
        self._damage = error  # kept until the recovery succeeds, which a full disk may prevent
        with suppress(sqlite3.Error):
            self._file.close()
        opened = self._opener.recovery.recover(error, self.identity, self._wall(), is_exact=True)
        self._file, self._damage = opened.file, None
        self._begin(opened)

    def _begin(self, opened: Opened) -> None:
        """Adopt a newly opened file and report its losses."""
        self._location = superblocks.location_of(self._opener.path)
        self.bytes_in_use, _ = opened.file.pages()
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
            lost = spool_caps.evict_bytes(file, cap, reason, self._wall())
        self.bytes_in_use, self.byte_limit = file.pages()[0], cap
        return lost

    def _give_up(self, spool_id: str, runs: Sequence[tuple[int, int]], reason: GapReason) -> None:
        def change(file: SpoolFile) -> list[Lost]:
            with file.transaction():
                now = self._wall()
                return [spool_caps.give_up(file, *run, reason, now) for run in runs]

        self._report(self._change(change, spool_id))

    def _report(self, lost: Sequence[Lost]) -> None:
        shift = self.spooled - self.identity.last
        for run in lost:
            self._on_lost(replace(run, first=run.first + shift, last=run.last + shift))
