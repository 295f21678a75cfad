"""One SQLite file of predictions that wait for the server: how it changes, not when.

`edge.spool.reader` says what is in it.
"""

import errno
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edge.spool import gaps as spool_gaps
from edge.spool import identity as identities
from edge.spool.entries import Dropped, Gap, GapReason
from edge.spool.identity import DamagedError, Identity
from edge.spool.lineage import begun, derived_id, shifted
from edge.spool.reader import APPLICATION_ID, SpoolReader
from edge.spool.rows import checksum, is_intact, is_intact_unbound, renumbered, sequence_fields
from servicekit.private_files import make_private

_SCHEMA = """
CREATE TABLE spool (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    identity TEXT NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE TABLE predictions (
    sequence INTEGER PRIMARY KEY,
    spooled_at REAL NOT NULL,
    checksum INTEGER NOT NULL,
    prediction BLOB NOT NULL
);
"""


class SpoolFile(SpoolReader):
    """An open spool file. One thread at a time; every change happens inside `transaction`.

    Args:
        path: the file; made if it is missing or empty.
        new: what a new file becomes; a device's name: a new spool of that device.

    Attributes:
        identity: as of the last change.

    Raises:
        DamagedError: the file is not a spool that was written by this module.
        SightlineError: a later version made it (`SPOOL_TOO_NEW`).
        sqlite3.Error: SQLite cannot use it.
    """

    def __init__(self, path: Path, new: Identity | str) -> None:
        self._is_durable: bool | None = None  # not known
        self._generation = str(uuid.uuid4())  # of what is added to the file by this object
        self._new = Identity(new, str(uuid.uuid4())) if isinstance(new, str) else new
        make_private(path)
        super().__init__(path, sqlite3.connect(path, isolation_level=None, check_same_thread=False))

    @property
    def opened_at(self) -> int:
        """The last sequence that was given out before this object was made."""
        now = self.identity
        return now.lineage[-1].after if self._has_begun else now.last

    def close(self) -> None:
        """Close the file; SQLite then moves the write-ahead log into it."""
        super().close()

    def complete(self) -> None:
        """Close the file when all of it is in the one file, without the log, and on the disk.

        `close` says nothing when the disk has no room for that; and then leaves it in the log.

        Raises:
            OSError, sqlite3.Error: it is not.
        """
        (is_busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.close()
        if is_busy or Path(f"{self.path}-wal").exists():
            raise OSError(errno.EBUSY, "another process reads the spool", str(self.path))
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Make the changes inside it happen together or not at all.

        Args:
            durable: False: a power failure may undo them (a crash of the process may not).
        """
        before = self.identity
        if durable != self._is_durable:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._is_durable = durable
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            if self.identity != before:
                self._store_identity()
            self._db.execute("COMMIT")
        except BaseException:
            self._use(before)
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def append(
        self, entries: Sequence[bytes | Dropped], spooled_at: float, declared_at: float
    ) -> None:
        """Give each entry its sequence and keep it; the first call begins an opening.

        Args:
            entries: bodies of predictions, and what was dropped between them.
            spooled_at: seconds on the caller's clock, for `expired`; 0: that clock is not set.
            declared_at: Unix seconds, for the gaps.
        """
        self._begin_opening()
        sequence, rows, tag = self.identity.last, [], self._tag
        fields = sequence_fields(sequence + 1)
        for entry in entries:
            if isinstance(entry, Dropped):
                self._gaps.declare(sequence + 1, sequence + entry.count, entry.reason, declared_at)
                sequence += entry.count
                fields = sequence_fields(sequence + 1)
            else:
                sequence += 1
                prediction = next(fields) + entry
                rows.append((sequence, spooled_at, checksum(prediction, sequence, tag), prediction))
        self._db.executemany("INSERT INTO predictions VALUES (?, ?, ?, ?)", rows)
        self.identity = replace(self.identity, last=sequence)

    @property
    def _has_begun(self) -> bool:
        """True if something was added since this object was made."""
        lineage = self.identity.lineage
        return bool(lineage) and lineage[-1].generation == self._generation

    def _begin_opening(self) -> None:
        now = self.identity
        if not self._has_begun:
            lineage = begun(now.lineage, self._generation, now.last, now.acknowledged)
            self.identity = replace(now, lineage=lineage)

    def restore(self, rows: Iterable[tuple[int, float, bytes]]) -> None:
        """Keep rows that were found in a damaged file, whatever their order.

        What is found twice and differs is not kept: nobody knows which one was sent.

        Args:
            rows: sequence, when it was spooled, prediction.
        """
        tag = self._tag
        self._db.executemany(
            "INSERT INTO predictions VALUES (?, ?, ?, ?) ON CONFLICT (sequence)"
            " DO UPDATE SET checksum = -1 WHERE prediction <> excluded.prediction",
            ((n, at, checksum(found, n, tag), found) for n, at, found in rows),
        )

    def settle(self, acknowledged: int, last: int) -> list[tuple[int, int]]:
        """End a restoration: says how far the sequences go, and return the runs that are missing.

        Args:
            acknowledged: nothing up to this sequence is wanted any more.
            last: the last sequence that is known to have been given out.
        """
        self._db.execute(
            "DELETE FROM predictions WHERE checksum = -1 OR sequence <= ?", (acknowledged,)
        )
        (high,) = self._db.execute("SELECT max(sequence) FROM predictions").fetchone()
        last, missing, position = max(last, high or 0), [], acknowledged
        for (sequence,) in self._db.execute("SELECT sequence FROM predictions ORDER BY sequence"):
            if sequence > position + 1:
                missing.append((position + 1, sequence - 1))
            position = sequence
        if position < last:
            missing.append((position + 1, last))
        self.identity = replace(self.identity, acknowledged=acknowledged, last=last)
        return missing

    def give_up(self, first: int, last: int, reason: GapReason, declared_at: float) -> int:
        """Turn a run of sequences, both ends included, into a gap.

        Returns:
            How many of them were in no gap before.
        """
        self._db.execute("DELETE FROM predictions WHERE sequence BETWEEN ? AND ?", (first, last))
        given_up = 0
        for known in [
            *self._gaps.within(first, last),
            Gap(last + 1, last + 1, reason, declared_at),
        ]:
            if first < known.first:
                self._gaps.declare(first, known.first - 1, reason, declared_at)
                given_up += known.first - first
            first = max(first, known.last + 1)
        return given_up

    def acknowledge(self, through: int) -> int:
        """Delete what the server has committed; return how many predictions that were."""
        deleted = self._db.execute(
            "DELETE FROM predictions WHERE sequence <= ?", (through,)
        ).rowcount
        self._gaps.acknowledge(through)
        self.identity = replace(self.identity, acknowledged=through)
        return deleted

    def rewind(self, through: int, declared_at: float) -> None:
        """Owe the server again what it has lost: as a gap, for it is deleted here."""
        first, last = through + 1, self.identity.acknowledged
        self._gaps.declare(first, last, GapReason.RELEASED, declared_at)
        self.identity = replace(self.identity, acknowledged=through)

    def renew(self, *, is_derived: bool = False) -> None:
        """Become another spool: a new spool_id, in which what is pending counts from 1.

        Args:
            is_derived: each copy of the spool that has the same prediction pending first arrives at
                the same spool_id, and its predictions at the same sequences.
        """
        old, shift = self.identity, self.identity.acknowledged
        self._delete_damaged()  # it must not get a new checksum: it will be missing instead
        last = old.last - shift
        lineage = shifted(old.lineage, shift, str(uuid.uuid4())) if last else ()
        new = derived_id(old.spool_id, lineage, shift) if is_derived and last else uuid.uuid4()
        self._use(Identity(old.device_id, str(new), 0, last, lineage=lineage))
        self._db.create_function("renumbered", 3, renumbered)
        self._db.create_function("checksum", 2, lambda row, n: checksum(row, n, self._tag))
        self._db.execute(
            "UPDATE predictions SET prediction = renumbered(prediction, sequence, sequence - ?)",
            (shift,),
        )
        self._db.execute(
            "UPDATE predictions SET sequence = sequence - ?,"
            " checksum = checksum(prediction, sequence - ?)",
            (shift, shift),
        )
        self._gaps.shift(shift)

    def expired(self, cutoff: float) -> int:
        """Return a sequence, of those that were spooled before a time, up to which all may go.

        Args:
            cutoff: on the caller's clock.

        Returns:
            The last one, if they are not too many for one look; 0: there is none.
        """
        through = 0
        # At most so many at a time: those without a time could make it look through all of them.
        rows = self._db.execute(
            "SELECT sequence, spooled_at FROM predictions ORDER BY sequence LIMIT 10000"
        )
        for sequence, spooled_at in rows:
            if not isinstance(spooled_at, float):
                raise DamagedError("its times are not what was written")
            if spooled_at >= cutoff:
                break
            if spooled_at:
                through = sequence
        rows.close()
        return through

    def oldest(self, size: int) -> int:
        """Return the last of the oldest sequences that together have this many bytes; 0: none."""
        through = 0
        rows = self._db.execute(
            "SELECT sequence, coalesce(length(prediction), 0) FROM predictions ORDER BY sequence"
        )
        for sequence, length in rows:
            through = sequence
            size -= length
            if size <= 0:
                break
        rows.close()
        return through

    def shrink(self, pages: int) -> None:
        """Give up to this many unused pages back to the disk; outside of a transaction."""
        # The pragma has to be stepped page by page, and `execute` steps what has no columns once.
        self._db.executescript(f"PRAGMA incremental_vacuum({pages})")

    def _prepare(self) -> None:
        self._configure()
        self._use(self._load() if self._is_made() else self._make())

    def _configure(self) -> None:
        # Before the first table, or it has no effect: lets the file shrink without being rewritten.
        self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA journal_size_limit = {4 << 20}")
        # Predictions are no secret to whoever may read the folder: no time is spent on wiping them.
        self._db.execute("PRAGMA secure_delete = OFF")
        self._db.execute(
            "PRAGMA fullfsync = ON"
        )  # macOS: its fsync alone stops at the drive's cache

    def _is_made(self) -> bool:
        return self._number("SELECT count(*) FROM sqlite_master") > 0

    def _make(self) -> Identity:
        self.identity = self._new
        self._db.execute("BEGIN IMMEDIATE")
        for statement in (*_SCHEMA.split(";"), spool_gaps.SCHEMA):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._store_identity()
        self._db.execute("COMMIT")
        return self.identity

    def _store_identity(self) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO spool VALUES (1, ?, ?)", identities.encode(self.identity)
        )

    def _delete_damaged(self) -> None:
        tag, unbound = self._tag, self.identity.unbound

        def is_damaged(sequence: int, check: object, prediction: object) -> bool:
            old = sequence <= unbound and is_intact_unbound(sequence, check, prediction)
            return not (old or is_intact(sequence, check, prediction, tag))

        self._db.create_function("is_damaged", 3, is_damaged)
        self._db.execute("DELETE FROM predictions WHERE is_damaged(sequence, checksum, prediction)")
