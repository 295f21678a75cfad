"""Write access to the spool file, an SQLite database of predictions that wait for the server.

`edge.spool.reader` describes the format; `edge.spool.spool` decides when to call what is here.
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
    """A spool file opened for writing, for one thread at a time.

    Every change needs `transaction`.

    Args:
        path: the file. It is created if it is missing or empty.
        new: identity of a newly created file, or a device id for a new spool of that device.

    Attributes:
        identity: identity as of the last change.

    Raises:
        DamagedError: the file is not a spool that this module wrote.
        SightlineError: a later version wrote the file (`SPOOL_TOO_NEW`).
        sqlite3.Error: SQLite cannot use the file.
    """

    def __init__(self, path: Path, new: Identity | str) -> None:
        self._is_durable: bool | None = None  # not known
        self._generation = str(uuid.uuid4())  # of the opening that this object adds to the lineage
        self._new = Identity(new, str(uuid.uuid4())) if isinstance(new, str) else new
        make_private(path)
        super().__init__(path, sqlite3.connect(path, isolation_level=None, check_same_thread=False))

    @property
    def opened_at(self) -> int:
        """The last sequence that was assigned before this object was created."""
        now = self.identity
        return now.lineage[-1].after if self._has_begun else now.last

    def complete(self) -> None:
        """Move the write-ahead log into the file, close it and sync it to the disk.

        `close` does the same, but silently leaves the log in place if the disk is full.

        Raises:
            OSError, sqlite3.Error: the log could not be moved, or the file not synced.
        """
        (is_busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.close()
        if is_busy or Path(f"{self.path}-wal").exists():
            raise OSError(errno.EBUSY, "another process is reading the spool", str(self.path))
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Commit all changes made inside, or none of them.

        Args:
            durable: False: a power failure may undo the changes; a crash of the process cannot.
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
        """Assign a sequence to each entry and store it. The first call begins a new opening.

        Args:
            entries: bodies of predictions, and the runs dropped between them.
            spooled_at: seconds on the caller's clock, used by `expired`. 0: the clock is not set.
            declared_at: Unix seconds recorded in the gaps.
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
        """True if this object has added an entry."""
        lineage = self.identity.lineage
        return bool(lineage) and lineage[-1].generation == self._generation

    def _begin_opening(self) -> None:
        now = self.identity
        if not self._has_begun:
            lineage = begun(now.lineage, self._generation, now.last, now.acknowledged)
            self.identity = replace(now, lineage=lineage)

    def restore(self, rows: Iterable[tuple[int, float, bytes]]) -> None:
        """Store rows recovered from a damaged file, in any order.

        Rows with one sequence but different contents are dropped: it is unknown which one was sent.

        Args:
            rows: tuples of sequence, time of spooling and prediction.
        """
        tag = self._tag
        self._db.executemany(
            "INSERT INTO predictions VALUES (?, ?, ?, ?) ON CONFLICT (sequence)"
            " DO UPDATE SET checksum = -1 WHERE prediction <> excluded.prediction",
            ((n, at, checksum(body, n, tag), body) for n, at, body in rows),
        )

    def settle(self, acknowledged: int, last: int) -> list[tuple[int, int]]:
        """Finish a restoration: set the range of sequences and return the missing runs.

        Args:
            acknowledged: rows up to and including this sequence are deleted.
            last: the last sequence known to have been assigned.
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
            The number of sequences that were in no gap before.
        """
        self._db.execute("DELETE FROM predictions WHERE sequence BETWEEN ? AND ?", (first, last))
        given_up = 0
        for gap in [
            *self._gaps.within(first, last),
            Gap(last + 1, last + 1, reason, declared_at),
        ]:
            if first < gap.first:
                self._gaps.declare(first, gap.first - 1, reason, declared_at)
                given_up += gap.first - first
            first = max(first, gap.last + 1)
        return given_up

    def acknowledge(self, through: int) -> int:
        """Delete what the server has committed; return the number of deleted predictions."""
        deleted = self._db.execute(
            "DELETE FROM predictions WHERE sequence <= ?", (through,)
        ).rowcount
        self._gaps.acknowledge(through)
        self.identity = replace(self.identity, acknowledged=through)
        return deleted

    def rewind(self, through: int, declared_at: float) -> None:
        """Declare a gap for what the server has lost: it is deleted here and cannot be resent."""
        first, last = through + 1, self.identity.acknowledged
        self._gaps.declare(first, last, GapReason.RELEASED, declared_at)
        self.identity = replace(self.identity, acknowledged=through)

    def renew(self, *, is_derived: bool = False) -> None:
        """Move the pending entries to a new spool_id, with sequences that start at 1.

        Args:
            is_derived: derive the spool_id from the first pending prediction. Copies of the spool
                with the same first pending prediction then get the same spool_id and sequences.
        """
        old, shift = self.identity, self.identity.acknowledged
        self._delete_damaged()  # damaged rows must not get a valid checksum; they will be missing
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
        """Return the last sequence of the oldest rows that were all spooled before a time.

        Args:
            cutoff: the time, in seconds on the caller's clock.

        Returns:
            A sequence among the first 10 000 rows. 0: no row has expired.
        """
        through = 0
        # The limit keeps rows without a time from making this scan the whole table.
        rows = self._db.execute(
            "SELECT sequence, spooled_at FROM predictions ORDER BY sequence LIMIT 10000"
        )
        for sequence, spooled_at in rows:
            if not isinstance(spooled_at, float):
                raise DamagedError("the time of a row is not a number")
            if spooled_at >= cutoff:
                break
            if spooled_at:
                through = sequence
        rows.close()
        return through

    def oldest(self, size: int) -> int:
        """Return the last of the oldest rows that together have this many bytes, or 0 if none."""
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
        """Return at most this many unused pages to the disk. Must not be in a transaction."""
        # The pragma frees one page per step; `execute` makes one step if there are no columns.
        self._db.executescript(f"PRAGMA incremental_vacuum({pages})")

    def _prepare(self) -> None:
        self._configure()
        self._use(self._load() if self._is_made() else self._make())

    def _configure(self) -> None:
        # Lets the file shrink without a rewrite; must come before the first table.
        self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA journal_size_limit = {4 << 20}")
        # Do not overwrite deleted rows: whoever may read the folder may read the predictions.
        self._db.execute("PRAGMA secure_delete = OFF")
        # macOS: fsync alone stops at the drive's cache.
        self._db.execute("PRAGMA fullfsync = ON")

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
