"""Public keys that verify JWTs: from a JWKS file, or from a URL."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

import grpc
import jwt

from servicekit.addresses import public_address, without_secrets
from servicekit.errors import SightlineError
from servicekit.routes import fetch

logger = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
"""Age at which keys from a URL are fetched again in the background, s."""
STALE_SECONDS = 3600.0
"""Age at which they are no longer used, s."""
COOLDOWN_SECONDS = 10.0
"""Minimum time between two fetches, s."""
FETCH_TIMEOUT_SECONDS = 5.0
FILE_CHECK_SECONDS = 0.5
_NO_JWKS = (ValueError, TypeError, AttributeError, RecursionError)
"""Errors of parsing other data, besides PyJWT's own."""


class KeySource(Protocol):
    """A source of public keys."""

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key; None: there is none.

        Args:
            key_id: the token's `kid`; None: it has none, and the set must have exactly one key.
            algorithm: the token's.

        Raises:
            SightlineError: UNAVAILABLE, `JWKS_UNAVAILABLE`; the keys cannot be read now.
        """
        ...


class JwksFile:
    """Keys from a file, which is read again when it has changed.

    If the file cannot be read any more, the last keys stay in use and an error is logged.

    Args:
        path: the file.
        clock: seconds.

    Raises:
        OSError, ValueError: the file cannot be read, or is not a JWKS.
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
            logger.error("JWKS: %s: %s; the last keys stay in use", self._path, error)  # noqa: TRY400 - its text says it all


class JwksUrl:
    """Keys from a URL, fetched off the event loop. Belongs to one loop.

    They are fetched when they are first needed, when they are old, and when a token names an
    unknown key. There is one fetch at a time, which serves all waiting calls.

    Args:
        url: http or https; see `servicekit.routes.fetch`.
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
        # Not by PyJWKClient: it would block a thread per call while the URL is down, and send
        # requests to this machine through a proxy of the environment.
        self._fetch_content = partial(fetch, url, FETCH_TIMEOUT_SECONDS)
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
            # Not `await`: a cancelled call must not cancel the fetch of the others, and a slow
            # response must not delay every call.
            await asyncio.wait([self._fetching], timeout=FETCH_TIMEOUT_SECONDS)

    def _start_refresh(self) -> None:
        """Start a fetch unless one is running or has just run."""
        now = self._clock()
        if self._fetching is None and now - self._tried >= self._cooldown:
            self._tried = now
            self._fetching = asyncio.ensure_future(self._fetch())

    async def _fetch(self) -> None:
        try:
            self._keys = _parse(await asyncio.to_thread(self._fetch_content))
            self._fetched = self._clock()
            self._failed = False
        except (OSError, HTTPException, ValueError) as error:
            self._failed = True
            shown = public_address(self._url)  # its query may have a token
            logger.warning("JWKS: %s: %s", shown, without_secrets(str(error), self._url))
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
    matching = [
        key
        for key in keys
        if key.algorithm_name == algorithm
        and key.public_key_use in (None, "sig")
        and key_id in (None, key.key_id)
    ]
    # Without a `kid`, the key is known only if the set has a single one.
    return matching[0] if matching and (key_id is not None or len(matching) == 1) else None


def _signature(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _parse(text: bytes) -> jwt.PyJWKSet:
    try:
        return jwt.PyJWKSet.from_dict(json.loads(text))
    except (jwt.PyJWTError, *_NO_JWKS) as error:
        raise ValueError(f"is no JWKS: {error}") from error
