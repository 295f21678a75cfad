"""Idempotency claims in SQLite: the embedded store."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inference_service.idempotency import Outcome, Record, StoreError

_BUSY_SECONDS = 5.0
# A claim also clears away this many whose time is over: more than it adds, so the table cannot
# outgrow one lifetime of claims, and few enough that no claim waits for it.
_CLEARED_PER_CLAIM = 10

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
"""
_CLEAR = """
DELETE FROM claims WHERE key IN
    (SELECT key FROM claims WHERE until <= :now ORDER BY until LIMIT :most)
"""
_CLAIM = """
INSERT INTO claims (key, fingerprint, owner, until)
VALUES (:key, :fingerprint, :owner, :until)
ON CONFLICT (key) DO UPDATE SET
    fingerprint = excluded.fingerprint, owner = excluded.owner, until = excluded.until,
    ok = NULL, payload = NULL
WHERE claims.until <= :now
"""
_HOLDER = "SELECT fingerprint, until, ok, payload FROM claims WHERE key = :key"
_SETTLE = """
UPDATE claims SET ok = :ok, payload = :payload, until = :until
WHERE key = :key AND owner = :owner AND ok IS NULL
"""
_RELEASE = "DELETE FROM claims WHERE key = :key AND owner = :owner AND ok IS NULL"


class SqliteStore:
    """A `Store` in a SQLite database. Threads may share it, one at a time.

    Args:
        path: the database file, which several processes of one machine may share; it is made if
            missing. Empty: a private temporary file, gone when the store is closed.

    Raises:
        StoreError: the file cannot be opened or is no SQLite database.
    """

    def __init__(self, path: str) -> None:
        with _reporting(f"cannot open the idempotency database {path or '(temporary)'}"):
            self._database = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last outcomes: they are then computed again.
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(_SCHEMA)

    def claim(
        self, key: bytes, *, fingerprint: bytes, owner: bytes, now: float, until: float
    ) -> Record | None:
        """As `Store.claim`; also clears away some claims whose time is over."""
        values = {
            "key": key,
            "fingerprint": fingerprint,
            "owner": owner,
            "now": now,
            "until": until,
        }
        with self._transaction():
            self._database.execute(_CLEAR, {"now": now, "most": _CLEARED_PER_CLAIM})
            if self._database.execute(_CLAIM, values).rowcount:
                return None
            return _record(self._database.execute(_HOLDER, {"key": key}).fetchone())

    def settle(self, key: bytes, *, owner: bytes, outcome: Outcome, until: float) -> bool:
        """As `Store.settle`."""
        values = {
            "key": key,
            "owner": owner,
            "ok": outcome.ok,
            "payload": outcome.payload,
            "until": until,
        }
        with self._transaction():
            return self._database.execute(_SETTLE, values).rowcount > 0

    def release(self, key: bytes, *, owner: bytes) -> None:
        """As `Store.release`."""
        with self._transaction():
            self._database.execute(_RELEASE, {"key": key, "owner": owner})

    def close(self) -> None:
        """As `Store.close`."""
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _reporting("the idempotency database does not work"):
            # IMMEDIATE: waits for another process's turn here, not in the middle.
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                yield


@contextmanager
def _reporting(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{what}: {error}") from error


def _record(row: tuple[Any, ...]) -> Record:
    fingerprint, until, ok, payload = row
    return Record(fingerprint, until, None if ok is None else Outcome(bool(ok), payload))
