"""Idempotency claims in SQLite: the embedded store."""

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
_BUSY_SECONDS = 2.0  # less than a lease: while it waits, it renews none
# What one piece of cleaning may do: few enough that the claim behind it hardly waits.
_FORGOTTEN_AT_A_TIME = 500
_PAGES_GIVEN_BACK_AT_A_TIME = 500
# Free pages that are kept for the next claims: one in so many, and some.
_SPARE_SHARE, _SPARE_PAGES = 8, 64
_WAL_BYTES = 16 * 1024 * 1024  # a larger log of a busy hour is cut back to this
_INCREMENTAL = 2  # PRAGMA auto_vacuum
# Passes by itself. After any other failure the database is opened anew.
_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL})

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
# An older database has outcomes with Unix seconds. Its clock begins before they end: a wall clock
# that is ahead at this moment must not end them all.
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
_FORGET_EXPIRED = """
DELETE FROM claims WHERE rowid IN
    (SELECT rowid FROM claims WHERE until <= :now AND ok IS NOT NULL ORDER BY until LIMIT :most)
"""
_SHORTEN = """
UPDATE claims SET until = :latest WHERE rowid IN
    (SELECT rowid FROM claims WHERE until > :latest AND ok IS NOT NULL LIMIT :most)
"""
_FORGET_OLDEST = """
DELETE FROM claims WHERE rowid IN
    (SELECT rowid FROM claims WHERE ok IS NOT NULL ORDER BY until LIMIT :most)
"""


class SqliteStore:
    """A `ClaimStore` in a SQLite database. Threads may share it, one at a time.

    A database that turns out to be damaged, or that was moved away or removed, is opened anew (or
    made, if it is gone), so that it suffices to put it right: the server need not be restarted.

    Args:
        path: the database file, which several processes of one machine may share; it is made if
            missing. Empty: a private temporary file, gone when the store is closed.
        max_bytes: beyond it the oldest outcomes are forgotten, > 0.

    Raises:
        ClaimStoreError: the file cannot be opened, is no SQLite database, or is damaged.
    """

    def __init__(self, path: str, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._database = self._open()
        self._file = self._identity()
        self._broken = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As `ClaimStore.transaction`."""
        with self._reporting():
            # IMMEDIATE: waits for another process's turn here, not in the middle.
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                yield

    def time(self, at_least: float = 0.0) -> float:
        """As `ClaimStore.time`."""
        with self._reporting():
            # All rows, else the statement would stay open and with it the lock.
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
        """As `ClaimStore.claim`; a key that another holds is only read, which waits for nobody."""
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
        with self._reporting():
            while True:
                held = self._holder(key)
                if held is not None and _keeps_out(held, now, over):
                    mine = held.owner == owner and held.outcome is None
                    return None if mine else held
                if self._database.execute(_CLAIM, values).rowcount:
                    return None
                # Another process was quicker.

    def find(self, key: bytes, *, now: float) -> Record | None:
        """As `ClaimStore.find`."""
        with self._reporting():
            held = self._holder(key)
            return held if held is not None and _keeps_out(held, now, None) else None

    def pending(self) -> list[tuple[bytes, ClaimVersion]]:
        """As `ClaimStore.pending`."""
        with self._reporting():
            return [(key, (owner, until)) for key, owner, until in self._database.execute(_PENDING)]

    def renew(self, key: bytes, *, owner: bytes, until: float) -> bool:
        """As `ClaimStore.renew`."""
        values = {"key": key, "owner": owner, "until": until}
        with self._reporting():
            return self._database.execute(_RENEW, values).rowcount > 0

    def settle(self, key: bytes, *, owner: bytes, outcome: ClaimOutcome, until: float) -> bool:
        """As `ClaimStore.settle`."""
        values = {
            "key": key,
            "owner": owner,
            "ok": outcome.ok,
            "payload": outcome.payload,
            "until": until,
        }
        with self._reporting():
            return self._database.execute(_SETTLE, values).rowcount > 0

    def release(self, key: bytes, *, owner: bytes) -> bool:
        """As `ClaimStore.release`."""
        with self._reporting():
            return self._database.execute(_RELEASE, {"key": key, "owner": owner}).rowcount > 0

    def prune(self, now: float, latest: float) -> bool:
        """As `ClaimStore.prune`; also finds out that the file was moved away."""
        if self._identity() != self._file:
            logger.error("the idempotency database %s was moved away: opening it anew", self._path)
            self._broken = True
        with self.transaction():
            more = self._forget(now, latest)
        return self._give_back() or more

    def size(self) -> Size:
        """As `ClaimStore.size`."""
        with self._reporting():
            rows: int = self._database.execute("SELECT count(*) FROM claims").fetchone()[0]
            return Size(rows, self._used_bytes())

    def close(self) -> None:
        """As `ClaimStore.close`."""
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
        """Return which file the path leads to; None: to no file, as of a private database."""
        try:
            found = Path(self._path).stat() if self._path else None
        except OSError:
            found = None
        if found is None:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        if self._broken:
            self._database.close()
            self._database = self._open()
            self._file = self._identity()
            self._broken = False
        with _as_store_error("the idempotency database does not work"):
            try:
                yield
            except sqlite3.Error as error:
                # The low byte is the kind of error; errors of the module itself have no code.
                self._broken = getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING
                raise

    def _holder(self, key: bytes) -> Record | None:
        row = self._database.execute(_HOLDER, {"key": key}).fetchone()
        return None if row is None else _record(row)

    def _forget(self, now: float, latest: float) -> bool:
        """Forget some of what is over or too much; return whether there is more of it."""
        bounds = {"now": now, "latest": latest, "most": _FORGOTTEN_AT_A_TIME}
        gone = self._database.execute(_FORGET_EXPIRED, bounds).rowcount
        gone = max(gone, self._database.execute(_SHORTEN, bounds).rowcount)
        if self._used_bytes() > self._max_bytes:
            oldest = {"most": _FORGOTTEN_AT_A_TIME}
            gone = max(gone, self._database.execute(_FORGET_OLDEST, oldest).rowcount)
        return gone >= _FORGOTTEN_AT_A_TIME

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._pragma(name) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _give_back(self) -> bool:
        """Give some free pages back to the file system; return whether there were any."""
        with self._reporting():
            pages, free = self._pragma("page_count"), self._pragma("freelist_count")
            extra = free - pages // _SPARE_SHARE - _SPARE_PAGES
            if extra <= 0:
                return False
            some = min(extra, _PAGES_GIVEN_BACK_AT_A_TIME)
            # As a script: `execute` would take one of the pages and stop.
            self._database.executescript(f"PRAGMA incremental_vacuum({some})")
            # Only then does the file get shorter.
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            return True

    def _pragma(self, name: str) -> int:
        value: int = self._database.execute(f"PRAGMA {name}").fetchone()[0]
        return value


def _check(database: sqlite3.Connection, name: str) -> None:
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise ClaimStoreError(
            f"the idempotency database {name} is damaged: move it away, and an empty one is made"
            f" ({found})"
        )


def _configure(database: sqlite3.Connection, *, private: bool) -> None:
    """Set a connection up, and the database if it is new."""
    if database.execute("PRAGMA auto_vacuum").fetchone()[0] != _INCREMENTAL:
        database.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
        database.execute("VACUUM")  # quick while it is empty; else it changes an old database
    if private:
        # It ends with the process, so there is nothing to protect from a crash.
        database.execute("PRAGMA journal_mode = MEMORY")
        database.execute("PRAGMA synchronous = OFF")
    else:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        # A power cut may lose the last outcomes: they are then computed again.
        database.execute("PRAGMA synchronous = NORMAL")
    database.executescript(_SCHEMA)
    database.execute(_BEGIN_CLOCK, {"wall": time.time()})


@contextmanager
def _as_store_error(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ClaimStoreError(f"{what}: {error}") from error


def _keeps_out(held: Record, now: float, over: ClaimVersion | None) -> bool:
    """Return True if a claim keeps others from the key."""
    return held.version != over if held.outcome is None else held.until > now


def _record(row: tuple[Any, ...]) -> Record:
    owner, fingerprint, until, ok, payload = row
    return Record(
        fingerprint, until, None if ok is None else ClaimOutcome(bool(ok), payload), owner
    )
