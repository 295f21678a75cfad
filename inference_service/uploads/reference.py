"""What a reference says, and how it is signed. Pure: key and time come in as arguments.

A reference is URL-safe text of 108 characters: a version, when it expires, the image's size and
SHA-256, and an HMAC over these and the owner. The owner itself is not in it, so to whoever else
brings it, it is as good as forged.
"""

import base64
import hashlib
import hmac
import struct
from dataclasses import dataclass

from inference_service.uploads.errors import reference_expired, reference_unknown

KEY_BYTES = 32
"""Of a key that is made here."""
_VERSION = 1
_CLAIM = struct.Struct(">BQQ32s")  # version, expiry in ms since 1970, size, SHA-256
_TEXT_LENGTH = 108  # of (49 + 32) bytes in base64, without padding
_PURPOSE = b"sightline upload reference\0"  # the secret may sign other things elsewhere


@dataclass(frozen=True, slots=True)
class Claim:
    """What a reference stands for."""

    sha256: bytes
    """32 bytes."""
    size: int
    """Bytes, >= 1."""
    expires_at: float
    """Unix seconds, whole milliseconds."""


class ReferenceSigner:
    """Makes references and tells its own from others.

    Args:
        key: at least 32 bytes; the same in every process that is to honour the references.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"key must be at least {KEY_BYTES} bytes, is {len(key)}")
        self._key = key

    def sign(self, claim: Claim, owner: str) -> str:
        """Return the reference that gives the owner, and nobody else, the image."""
        body = _CLAIM.pack(_VERSION, round(claim.expires_at * 1000), claim.size, claim.sha256)
        return base64.urlsafe_b64encode(body + self._mac(body, owner)).decode()

    def read(self, reference: str, owner: str, now: float) -> Claim:
        """Return what a reference stands for.

        Args:
            reference: as a caller has sent it.
            owner: who the caller is.
            now: Unix seconds.

        Raises:
            SightlineError: NOT_FOUND: `REFERENCE_UNKNOWN`, whether it is no reference, forged or
                another caller's; `REFERENCE_EXPIRED`.
        """
        body, mac = _split(reference)
        if not hmac.compare_digest(mac, self._mac(body, owner)):
            raise reference_unknown()
        _, expires_ms, size, sha256 = _CLAIM.unpack(body)
        claim = Claim(sha256, size, expires_ms / 1000)
        if claim.expires_at <= now:
            raise reference_expired(sha256, now - claim.expires_at)
        return claim

    def _mac(self, body: bytes, owner: str) -> bytes:
        return hmac.digest(self._key, _PURPOSE + body + owner.encode(), hashlib.sha256)


def _split(reference: str) -> tuple[bytes, bytes]:
    if len(reference) != _TEXT_LENGTH:
        raise reference_unknown()
    try:
        raw = base64.urlsafe_b64decode(reference)
    except ValueError:  # also what is not ASCII
        raise reference_unknown() from None
    # The decoder also takes other spellings of the same bytes.
    if base64.urlsafe_b64encode(raw).decode() != reference or raw[0] != _VERSION:
        raise reference_unknown()
    return raw[: _CLAIM.size], raw[_CLAIM.size :]
