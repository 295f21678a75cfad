"""Public keys that verify JWTs: from a JWKS file, or from a URL."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import grpc
import jwt

from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
"""Age at which keys from a URL are fetched again, beside the calls that use them."""
STALE_SECONDS = 3600.0
"""Age at which they are not used any more."""
COOLDOWN_SECONDS = 10.0
"""Time between two fetches, whatever callers send."""
FETCH_TIMEOUT_SECONDS = 5.0
FILE_CHECK_SECONDS = 0.5
_NO_JWKS = (ValueError, TypeError, AttributeError, RecursionError)
"""What reading something else may raise, beside PyJWT's own errors."""


class KeySource(Protocol):
    """Where keys come from."""

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key; None: there is none.

        Args:
            key_id: the token's `kid`; None: it has none, and the set must have one key to try.
            algorithm: the token's.

        Raises:
            SightlineError: UNAVAILABLE, `JWKS_UNAVAILABLE`; the keys cannot be read now.
        """
        ...


class JwksFile:
    """Keys from a file, which is read again when it has changed.

    A file that cannot be read any more leaves the keys that were last read, and a line in the log.

    Args:
        path: the file.
        clock: seconds.

    Raises:
        OSError, ValueError: the file cannot be read, or is no JWKS.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._seen = _signature(path)
        self._keys = _parse(path.read_bytes())
        self._checked = clock()

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key; see `KeySource`."""
        now = self._clock()
        if now - self._checked >= FILE_CHECK_SECONDS:
            self._checked = now
            self._refresh()
        return _match(self._keys, key_id, algorithm)

    def _refresh(self) -> None:
        try:
            signature = _signature(self._path)
            if signature == self._seen:
                return
            self._seen = signature
            self._keys = _parse(self._path.read_bytes())
        except (OSError, ValueError) as error:
            logger.error("JWKS: %s: %s; the last keys stay in force", self._path, error)  # noqa: TRY400 - its text says it all


class JwksUrl:
    """Keys from a URL, fetched off the event loop. Belongs to one loop.

    They are fetched when they are first needed, when they are old, and when a token names a key
    that is not among them; one fetch at a time serves everyone who waits.

    Args:
        url: http or https; redirects are not followed.
        cooldown: time between two fetches, s.
        clock: seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        cooldown: float = COOLDOWN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # What it caches and when it fetches again is decided here: it would hold up a thread per
        # call while the URL is down.
        client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=FETCH_TIMEOUT_SECONDS)
        self._fetch_keys: Callable[[], jwt.PyJWKSet] = client.get_jwk_set
        self._url = url
        self._cooldown = cooldown
        self._clock = clock
        self._keys: jwt.PyJWKSet | None = None
        self._fetched = -float("inf")
        self._tried = -float("inf")
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key; see `KeySource`."""
        age = self._clock() - self._fetched
        if age > STALE_SECONDS:
            await self._refresh()
        elif age > FRESH_SECONDS:
            self._start_refresh()
        key = self._match(key_id, algorithm)
        if key is None:
            await self._refresh()
            key = self._match(key_id, algorithm)
        if key is None and (self._failed or self._keys is None or self._fetching is not None):
            raise self._unavailable()
        return key

    def _match(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        if self._keys is None or self._clock() - self._fetched > STALE_SECONDS:
            return None
        return _match(self._keys, key_id, algorithm)

    async def _refresh(self) -> None:
        self._start_refresh()
        if self._fetching is not None:
            # Not `await`: a caller that goes away must not take the fetch from the others, and a
            # URL whose answer trickles in must not hold up every call.
            await asyncio.wait([self._fetching], timeout=FETCH_TIMEOUT_SECONDS)

    def _start_refresh(self) -> None:
        """Start a fetch unless one is under way or was a moment ago."""
        now = self._clock()
        if self._fetching is None and now - self._tried >= self._cooldown:
            self._tried = now
            self._fetching = asyncio.ensure_future(self._fetch())

    async def _fetch(self) -> None:
        try:
            self._keys = await asyncio.to_thread(self._fetch_keys)
            self._fetched = self._clock()
            self._failed = False
        except (jwt.PyJWTError, OSError, *_NO_JWKS) as error:
            self._failed = True
            logger.warning("JWKS: %s: %s", self._url, error)
        finally:
            self._fetching = None

    def _unavailable(self) -> SightlineError:
        return SightlineError(
            grpc.StatusCode.UNAVAILABLE,
            "JWKS_UNAVAILABLE",
            "the keys that verify tokens cannot be fetched now",
            retry_after=max(self._tried + self._cooldown - self._clock(), 0.0),
        )


def _match(keys: Iterable[jwt.PyJWK], key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
    found = [
        key
        for key in keys
        if key.algorithm_name == algorithm
        and key.public_key_use in (None, "sig")
        and key_id in (None, key.key_id)
    ]
    # Without a `kid`, only a set of one key says which one is meant.
    return found[0] if found and (key_id is not None or len(found) == 1) else None


def _signature(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _parse(text: bytes) -> jwt.PyJWKSet:
    try:
        return jwt.PyJWKSet.from_dict(json.loads(text))
    except (jwt.PyJWTError, *_NO_JWKS) as error:
        raise ValueError(f"is no JWKS: {error}") from error
