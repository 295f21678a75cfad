"""The SQLite file of API keys, which a command writes and servers read."""

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from servicekit.auth.api_keys import ApiKey, generate
from servicekit.auth.caller import MAX_NAME_BYTES, Devices, Scope, is_name

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.5
"""Maximum age of a server's copy of the keys, s."""
_VERSION = 1
_SCHEMA = """
    CREATE TABLE api_keys (
        id TEXT PRIMARY KEY,
        secret_hash BLOB NOT NULL,  -- SHA-256 of 256 random bits
        name TEXT NOT NULL,
        devices TEXT NOT NULL,      -- JSON list
        scopes TEXT NOT NULL,       -- JSON list
        created_at TEXT NOT NULL,   -- ISO 8601, UTC, as the others
        expires_at TEXT,
        revoked_at TEXT
    ) STRICT
"""
_INSERT = "INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SELECT = """
    SELECT id, secret_hash, name, devices, scopes, created_at, expires_at, revoked_at
    FROM api_keys ORDER BY created_at, id
"""


class KeyFileError(Exception):
    """The file or a value cannot be used. The message is one sentence for people."""


class KeyFile:
    """The file of keys. Every method opens it again, so a server may read it meanwhile.

    Args:
        path: created with the first key, readable only for its owner.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(
        self,
        name: str,
        *,
        devices: Sequence[str],
        scopes: Sequence[Scope],
        expires_at: datetime | None = None,
    ) -> tuple[str, ApiKey]:
        """Create a key; return it in full, and its stored form.

        Args:
            name: the caller that will use it, 1 to 256 bytes.
            devices: exact names, or `prefix*`.
            scopes: at least one.
            expires_at: UTC; None: never.

        Raises:
            KeyFileError: a value is out of its bounds, or the file cannot be written.
        """
        _check(name, devices, scopes)
        text, key = _made(name, devices, scopes, expires_at)
        with self._writing(create=True) as connection:
            connection.execute(_INSERT, _row(key))
        return text, key

    def all(self) -> list[ApiKey]:
        """Return every key, oldest first. Raises KeyFileError: the file cannot be read."""
        with _translated(self._path), contextlib.closing(_connect(self._path, "ro")) as connection:
            return _read(connection)

    def revoke(self, key_id: str) -> bool:
        """Revoke a key and return True if it was valid. Revoking again changes nothing.

        Raises:
            KeyFileError: there is no such key, or the file cannot be written.
        """
        with self._writing() as connection:
            if not connection.execute("SELECT 1 FROM api_keys WHERE id = ?", [key_id]).fetchone():
                raise KeyFileError(f"{self._path} has no key {key_id}")
            changed = connection.execute(
                "UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                [_now().isoformat(), key_id],
            )
            return changed.rowcount == 1

    def rotate(
        self, key_id: str, *, old_ends_at: datetime, expires_at: datetime | None = None
    ) -> tuple[str, ApiKey]:
        """Create a key with the permissions of another, and end that one, in one transaction.

        Args:
            key_id: of the old key.
            old_ends_at: end of the old key, UTC; an earlier end stays.
            expires_at: end of the new key, UTC; None: never.

        Returns:
            The new key in full, and its stored form.

        Raises:
            KeyFileError: there is no such key, it has ended, or the file cannot be written.
        """
        with self._writing() as connection:
            old = next((key for key in _read(connection) if key.id == key_id), None)
            if old is None:
                raise KeyFileError(f"{self._path} has no key {key_id}")
            if old.revoked_at or (old.expires_at and old.expires_at <= _now()):
                raise KeyFileError(
                    f"key {key_id} has ended: `sightline keys create` creates another"
                )
            text, key = _made(old.name, old.devices, old.scopes, expires_at)
            connection.execute(_INSERT, _row(key))
            end = min(old_ends_at, old.expires_at or old_ends_at)
            connection.execute(
                "UPDATE api_keys SET expires_at = ? WHERE id = ?", [end.isoformat(), key_id]
            )
        return text, key

    @contextlib.contextmanager
    def _writing(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        with _translated(self._path):
            if create:
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            opened = contextlib.closing(_connect(self._path, "rw", timeout=10.0))
            with opened as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                if create and _is_empty(connection):
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
                _check_version(connection)
                yield connection


class KeyReader:
    """A server's copy of the keys, at most `CHECK_SECONDS` old.

    If the file cannot be read any more, the last copy stays in use and an error is logged: a
    failing disk must not lock a fleet out.

    Args:
        path: the file.
        clock: seconds.

    Raises:
        KeyFileError: the file cannot be read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, int, int] | None = None
        self._keys: Mapping[str, ApiKey] = {}
        self._complaint = ""
        with _translated(path):
            self._refresh()
        self._checked = clock()

    def current(self) -> Mapping[str, ApiKey]:
        """Return every key by its id."""
        now = self._clock()
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            self._try_to_refresh()
        return self._keys

    def _try_to_refresh(self) -> None:
        try:
            with _translated(self._path):
                self._refresh()
            self._complaint = ""
        except KeyFileError as error:
            if self._complaint != str(error):
                self._complaint = str(error)
                logger.error("API keys: %s; the keys that were read last stay in use", error)  # noqa: TRY400 - its text says it all

    def _refresh(self) -> None:
        """Read the file if it was replaced or written to; the check is cheap."""
        status = self._path.stat()
        if self._connection is None or self._seen is None or self._seen[:2] != _inode(status):
            self._reopen()
        if self._connection is None:
            return
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        seen = (*_inode(status), version)
        if seen != self._seen:
            self._keys = {key.id: key for key in _read(self._connection)}
            self._seen = seen

    def _reopen(self) -> None:
        connection, self._connection, self._seen = self._connection, None, None
        if connection is not None:
            connection.close()
        # A short timeout, because the event loop waits for a writer; the next check is soon.
        self._connection = _connect(self._path, "ro", timeout=0.05)


def _connect(path: Path, mode: str, *, timeout: float = 5.0) -> sqlite3.Connection:
    path.stat()  # raises FileNotFoundError, which SQLite does not report as such
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if not path.parent.exists():
            raise KeyFileError(f"{path}: its folder does not exist") from error
        raise KeyFileError(f"{path} does not exist: `sightline keys create` creates it") from error
    except (OSError, sqlite3.Error, ValueError) as error:
        raise KeyFileError(f"{path} cannot be used as a file of API keys: {error}") from error


def _made(
    name: str, devices: Sequence[str], scopes: Sequence[Scope], expires_at: datetime | None
) -> tuple[str, ApiKey]:
    text, key_id, secret_hash = generate()
    return text, ApiKey(
        key_id, secret_hash, name, tuple(devices), tuple(scopes), _now(), expires_at
    )


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _check_version(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        raise ValueError(f"its version must be {_VERSION} (got {version})")


def _read(connection: sqlite3.Connection) -> list[ApiKey]:
    _check_version(connection)
    return [_key(*row) for row in connection.execute(_SELECT)]


def _row(key: ApiKey) -> tuple[object, ...]:
    return (
        key.id,
        key.secret_hash,
        key.name,
        json.dumps(key.devices),
        json.dumps(key.scopes),
        key.created_at.isoformat(),
        key.expires_at.isoformat() if key.expires_at else None,
        key.revoked_at.isoformat() if key.revoked_at else None,
    )


def _key(
    key_id: str,
    secret_hash: bytes,
    name: str,
    devices: str,
    scopes: str,
    created_at: str,
    expires_at: str | None,
    revoked_at: str | None,
) -> ApiKey:
    return ApiKey(
        key_id,
        secret_hash,
        name,
        tuple(json.loads(devices)),
        tuple(map(Scope, json.loads(scopes))),
        datetime.fromisoformat(created_at),
        datetime.fromisoformat(expires_at) if expires_at else None,
        datetime.fromisoformat(revoked_at) if revoked_at else None,
    )


def _check(name: str, devices: Sequence[str], scopes: Sequence[Scope]) -> None:
    if not is_name(name):
        raise KeyFileError(f"name: must be 1 to {MAX_NAME_BYTES} bytes of UTF-8")
    if not scopes:
        raise KeyFileError("scopes: must be at least one")
    try:
        Devices.parse(devices)
    except ValueError as error:
        raise KeyFileError(f"devices: {error}") from error


def _now() -> datetime:
    return datetime.now(UTC)
