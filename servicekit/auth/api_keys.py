"""API keys: their format, their stored form, and their verification. Pure.

A key is `slk_<id>_<secret>`: a prefix by which scanners find leaked keys, a public id, and 256
random bits. Only the SHA-256 of the secret is stored. A slow hash is not needed: it protects
passwords, which can be guessed, while 256 random bits cannot; and every call would pay for it.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from servicekit.auth.caller import Caller, Devices, Proof, Scope, unauthenticated

PREFIX = "slk_"
_KEY = re.compile(r"slk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The stored form of a key."""

    id: str
    """12 hexadecimal digits; not secret."""
    secret_hash: bytes
    """SHA-256 of the secret."""
    name: str
    """Name of the caller; several keys may have the same, so that one can replace another."""
    devices: tuple[str, ...]
    """Patterns for `Devices.parse`."""
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


def generate() -> tuple[str, str, bytes]:
    """Return a new key in full, its id, and the hash of its secret."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return f"{PREFIX}{key_id}_{secret}", key_id, _hash(secret)


def check(text: str, keys: Mapping[str, ApiKey], now: datetime) -> Caller:
    """Return the caller that a key belongs to.

    Args:
        text: the key as the caller sent it.
        keys: the stored keys by id.
        now: UTC.

    Raises:
        SightlineError: UNAUTHENTICATED; the key is unknown, revoked or expired.
    """
    parts = _KEY.fullmatch(text)
    key = keys.get(parts[1]) if parts else None
    if parts is None or key is None or not hmac.compare_digest(_hash(parts[2]), key.secret_hash):
        raise unauthenticated("API_KEY_UNKNOWN", "the API key is not known here")
    if key.revoked_at is not None:
        raise unauthenticated("API_KEY_REVOKED", f"API key {key.id} was revoked")
    if key.expires_at is not None and now >= key.expires_at:
        raise unauthenticated("API_KEY_EXPIRED", f"API key {key.id} has expired")
    return Caller(key.name, Proof.API_KEY, Devices.parse(key.devices), frozenset(key.scopes))


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
