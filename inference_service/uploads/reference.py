"""Format and signature of references to uploads. Pure: key and time are arguments.

A reference is URL-safe text of 108 characters: version, expiry, the image's size and SHA-256, and
an HMAC over these and the owner. It does not contain the owner: for any other caller its signature
is invalid.
"""

import base64
import hashlib
import hmac
import struct
from dataclasses import dataclass

from inference_service.uploads.errors import reference_expired, reference_unknown

KEY_BYTES = 32
"""Length of a generated key."""
_VERSION = 1
_CLAIM = struct.Struct(">BQQ32s")  # version, expiry in ms since 1970, size, SHA-256
_TEXT_LENGTH = 108  # of (49 + 32) bytes in base64, without padding
_PURPOSE = (
    b"sightline upload reference\0"  # separates these signatures from other uses of the secret
)


@dataclass(frozen=True, slots=True)
class Claim:
    """The signed content of a reference."""

    sha256: bytes
    """SHA-256 of the image, 32 bytes."""
    size: int
    """Size of the image in bytes, >= 1."""
    expires_at: float
    """Expiry in Unix seconds, whole milliseconds."""


class ReferenceSigner:
    """A signer and verifier of references.

    Args:
        key: at least 32 bytes; the same in every process that accepts the references.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"key must be at least {KEY_BYTES} bytes, got {len(key)}")
        self._key = key

    def sign(self, claim: Claim, owner: str) -> str:
        """Return a reference that is valid for the owner only."""
        body = _CLAIM.pack(_VERSION, round(claim.expires_at * 1000), claim.size, claim.sha256)
        return base64.urlsafe_b64encode(body + self._mac(body, owner)).decode()

    def read(self, reference: str, owner: str, now: float) -> Claim:
        """Verify a reference and return its content.

        Args:
            reference: the reference that the caller sent.
            owner: identity of the caller.
            now: Unix seconds.

        Raises:
            SightlineError: NOT_FOUND: `REFERENCE_UNKNOWN`: malformed, forged, or another caller's;
                `REFERENCE_EXPIRED`.
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
    except ValueError:  # including non-ASCII text
        raise reference_unknown() from None
    # The decoder also accepts other encodings of the same bytes.
    if base64.urlsafe_b64encode(raw).decode() != reference or raw[0] != _VERSION:
        raise reference_unknown()
    return raw[: _CLAIM.size], raw[_CLAIM.size :]
