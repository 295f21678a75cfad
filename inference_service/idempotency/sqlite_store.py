"""The claim store in SQLite."""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference_service.idempotency.store import (
    ClaimOutcome,
    ClaimStoreError,
    ClaimVersion,
    Record,
    Size,
)
from servicekit.private_files import make_private

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 256 * 1024 * 1024
_BUSY_SECONDS = 2.0  # less than a lease: no lease is renewed during the wait
# Bounds of one call of `prune`, so that it does not delay the next claim noticeably.
_PRUNED_ROWS = 500
_VACUUMED_PAGES = 500
# Free pages that are kept for the next claims: one in `_SPARE_SHARE`, plus `_SPARE_PAGES`.
_SPARE_SHARE, _SPARE_PAGES = 8, 64
_WAL_BYTES = 16 * 1024 * 1024  # a larger log is truncated to this
_INCREMENTAL = 2  # PRAGMA auto_vacuum
# Transient errors. After any other failure the database is reopened.
_TRANSIENT = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL})

_SCHEMA = """
CREATE TABLE IF NOT EXISTS claims (
    key BLOB PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    owner BLOB NOT NULL,
    until REAL NOT NULL,
    ok INTEGER,   -- NULL: pending
    payload BLOB  -- NULL: pending
);
CREATE INDEX IF NOT EXISTS claims_until ON claims (until);
CREATE INDEX IF NOT EXISTS claims_pending ON claims (key) WHERE ok IS NULL;
CREATE TABLE IF NOT EXISTS clock (only INTEGER PRIMARY KEY CHECK (only = 1), seconds REAL NOT NULL);
"""
# An older database has outcomes with Unix times. Its clock starts before the first of them expires:
# a wall clock that is ahead at this moment must not expire all of them.
_BEGIN_CLOCK = """
INSERT OR IGNORE INTO clock VALUES
    (1, coalesce(min(:wall, (SELECT min(until) FROM claims WHERE ok IS NOT NULL)), :wall))
"""
_TIME = "UPDATE clock SET seconds = max(seconds, :at_least) RETURNING seconds"
_PENDING = "SELECT key, owner, until FROM claims WHERE ok IS NULL"
_HOLDER = "SELECT owner, fingerprint, until, ok, payload FROM claims WHERE key = :key"
_CLAIM = """
INSERT INTO claims (key, fingerprint, owner, until)
VALUES (:key, :fingerprint, :owner, :until)
ON CONFLICT (key) DO UPDATE SET
    fingerprint = excluded.fingerprint, owner = excluded.owner, until = excluded.until,
    ok = NULL, payload = NULL
WHERE CASE WHEN claims.ok IS NULL
    THEN claims.owner = :over_owner AND claims.until = :over_until
    ELSE claims.until <= :now END
"""
_RENEW = "UPDATE claims SET until = :until WHERE key = :key AND owner = :owner AND ok IS NULL"
_SETTLE = """
UPDATE claims SET ok = :ok, payload = :payload, until = :until
WHERE key = :key AND owner = :owner AND ok IS NULL
"""
_RELEASE = "DELETE FROM claims WHERE key = :key AND owner = :owner AND ok IS NULL"
_DELETE_EXPIRED = """
DELETE FROM claims WHERE rowid IN
    (SELECT rowid FROM claims WHERE until <= :now AND ok IS NOT NULL ORDER BY until LIMIT :limit)
"""
_SHORTEN = """
UPDATE claims SET until = :latest WHERE rowid IN
    (SELECT rowid FROM claims WHERE until > :latest AND ok IS NOT NULL LIMIT :limit)
"""
_DELETE_OLDEST = """
DELETE FROM claims WHERE rowid IN
    (SELECT rowid FROM claims WHERE ok IS NOT NULL ORDER BY until LIMIT :limit)
"""


class SqliteStore:
    """A `ClaimStore` in a SQLite database. Threads may share it, one at a time.

    A database that is damaged, moved away or removed is reopened (and created if it is missing):
    after a repair the server need not be restarted.

    Args:
        path: the database file, which several processes of one machine may share; created if
            missing. Empty: a private temporary file, which is removed when the store is closed.
        max_bytes: size beyond which the oldest outcomes are deleted, > 0.

    Raises:
        ClaimStoreError: the file cannot be opened, is not a SQLite database, or is damaged.
    """

    def __init__(self, path: str, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._database = self._open()
        self._file = self._identity()
        self._broken = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Execute the operations of the block in one transaction."""
        with self._usable():
            # IMMEDIATE: wait for another process here and not within the transaction.
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                yield

    def time(self, at_least: float = 0.0) -> float:
        """Advance the store's clock to `at_least`, and return its time, s."""
        with self._usable():
            # Fetch all rows: an open statement would keep the lock.
            ((seconds,),) = self._database.execute(_TIME, {"at_least": at_least}).fetchall()
            return float(seconds)

    def claim(
        self,
        key: bytes,
        *,
        fingerprint: bytes,
        owner: bytes,
        now: float,
        until: float,
        over: ClaimVersion | None = None,
    ) -> Record | None:
        """Claim a key; a key that another owner holds is only read, which needs no lock."""
        over_owner, over_until = over or (None, None)
        values = {
            "key": key,
            "fingerprint": fingerprint,
            "owner": owner,
            "now": now,
            "until": until,
            "over_owner": over_owner,
            "over_until": over_until,
        }
        with self._usable():
            while True:
                held = self._holder(key)
                if held is not None and _is_held(held, now, over):
                    owned = held.owner == owner and held.outcome is None
                    return None if owned else held
                if self._database.execute(_CLAIM, values).rowcount:
                    return None
                # Another process changed the key in between: look again.

    def find(self, key: bytes, *, now: float) -> Record | None:
        """Return the record of a key; None if nobody holds it."""
        with self._usable():
            held = self._holder(key)
            return held if held is not None and _is_held(held, now, None) else None

    def pending(self) -> list[tuple[bytes, ClaimVersion]]:
        """Return key and version of every pending claim."""
        with self._usable():
            return [(key, (owner, until)) for key, owner, until in self._database.execute(_PENDING)]

    def renew(self, key: bytes, *, owner: bytes, until: float) -> bool:
        """Renew the owner's claim; False if it is lost."""
        values = {"key": key, "owner": owner, "until": until}
        with self._usable():
            return self._database.execute(_RENEW, values).rowcount > 0

    def settle(self, key: bytes, *, owner: bytes, outcome: ClaimOutcome, until: float) -> bool:
        """Settle the owner's claim; False if it is lost."""
        values = {
            "key": key,
            "owner": owner,
            "ok": outcome.ok,
            "payload": outcome.payload,
            "until": until,
        }
        with self._usable():
            return self._database.execute(_SETTLE, values).rowcount > 0

    def release(self, key: bytes, *, owner: bytes) -> bool:
        """Release the owner's claim; False if it is lost."""
        with self._usable():
            return self._database.execute(_RELEASE, {"key": key, "owner": owner}).rowcount > 0

    def prune(self, now: float, latest: float) -> bool:
        """Delete a bounded number of outcomes; reopen the database if its file was moved away."""
        if self._identity() != self._file:
            logger.error("the idempotency database %s was moved away: it is reopened", self._path)
            self._broken = True
        with self.transaction():
            more = self._delete_outcomes(now, latest)
        return self._vacuum() or more

    def size(self) -> Size:
        """Return the size of the store."""
        with self._usable():
            rows: int = self._database.execute("SELECT count(*) FROM claims").fetchone()[0]
            return Size(rows, self._used_bytes())

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _open(self) -> sqlite3.Connection:
        name = self._path or "(temporary)"
        if self._path:
            make_private(self._path)
        with _as_store_error(f"cannot open the idempotency database {name}"):
            database = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                _check(database, name)
                _configure(database, private=not self._path)
            except BaseException:
                database.close()
                raise
            return database

    def _identity(self) -> tuple[int, int] | None:
        """Return device and inode of the database file; None if there is no file."""
        if not self._path:  # a private temporary database
            return None
        try:
            status = Path(self._path).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    @contextmanager
    def _usable(self) -> Iterator[None]:
        if self._broken:
            self._database.close()
            self._database = self._open()
            self._file = self._identity()
            self._broken = False
        with _as_store_error("the idempotency database does not work"):
            try:
                yield
            except sqlite3.Error as error:
                # The low byte is the primary code; errors of the module itself have no code.
                self._broken = getattr(error, "sqlite_errorcode", 0) & 0xFF not in _TRANSIENT
                raise

    def _holder(self, key: bytes) -> Record | None:
        row = self._database.execute(_HOLDER, {"key": key}).fetchone()
        return None if row is None else _record(row)

    def _delete_outcomes(self, now: float, latest: float) -> bool:
        """Delete some expired or excess outcomes; return True if there may be more."""
        bounds = {"now": now, "latest": latest, "limit": _PRUNED_ROWS}
        deleted = self._database.execute(_DELETE_EXPIRED, bounds).rowcount
        deleted = max(deleted, self._database.execute(_SHORTEN, bounds).rowcount)
        if self._used_bytes() > self._max_bytes:
            oldest = {"limit": _PRUNED_ROWS}
            deleted = max(deleted, self._database.execute(_DELETE_OLDEST, oldest).rowcount)
        return deleted >= _PRUNED_ROWS

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._pragma(name) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _vacuum(self) -> bool:
        """Return some free pages to the file system; return False if there were none."""
        with self._usable():
            pages, free = self._pragma("page_count"), self._pragma("freelist_count")
            extra = free - pages // _SPARE_SHARE - _SPARE_PAGES
            if extra <= 0:
                return False
            pages = min(extra, _VACUUMED_PAGES)
            # As a script: `execute` would free only one page.
            self._database.executescript(f"PRAGMA incremental_vacuum({pages})")
            # The checkpoint truncates the file.
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            return True

    def _pragma(self, name: str) -> int:
        value: int = self._database.execute(f"PRAGMA {name}").fetchone()[0]
        return value


def _check(database: sqlite3.Connection, name: str) -> None:
    result = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if result != "ok":
        raise ClaimStoreError(
            f"the idempotency database {name} is damaged ({result}): move it away, and an empty one"
            " is created"
        )


def _configure(database: sqlite3.Connection, *, private: bool) -> None:
    """Configure a connection, and create the tables of a new database."""
    if database.execute("PRAGMA auto_vacuum").fetchone()[0] != _INCREMENTAL:
        database.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
        database.execute("VACUUM")  # fast for an empty database; converts an old one
    if private:
        # The file is removed with the process, so it need not survive a crash.
        database.execute("PRAGMA journal_mode = MEMORY")
        database.execute("PRAGMA synchronous = OFF")
    else:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        # A power failure may lose the last outcomes, which are then computed again.
        database.execute("PRAGMA synchronous = NORMAL")
    database.executescript(_SCHEMA)
    database.execute(_BEGIN_CLOCK, {"wall": time.time()})


@contextmanager
def _as_store_error(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ClaimStoreError(f"{what}: {error}") from error


def _is_held(held: Record, now: float, over: ClaimVersion | None) -> bool:
    """Return True if the key is not free for another claim."""
    return held.version != over if held.outcome is None else held.until > now


def _record(row: tuple[Any, ...]) -> Record:
    owner, fingerprint, until, ok, payload = row
    return Record(
        fingerprint, until, None if ok is None else ClaimOutcome(bool(ok), payload), owner
    )
