"""Page tokens, which hold the start of the next page of a listing.

Pure. A token is opaque to clients and valid for one filter only: it contains the last position of
its page and a fingerprint of the filter.
"""

import base64
import binascii
import hashlib
import json

from ingest_service.store.protocol import Filter, Position
from servicekit.errors import SightlineError, invalid

MAX_TOKEN_CHARACTERS = 4096
_VERSION = 1
_LIMITS = (-(2**63), 2**63 - 1)


def encode_token(position: Position, filter_: Filter) -> str:
    """Return the token of the page that follows this position."""
    parts = [_VERSION, _fingerprint(filter_), *position]
    text = json.dumps(parts, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_token(token: str, filter_: Filter) -> Position:
    """Return the position after which the page starts.

    Raises:
        SightlineError: INVALID_ARGUMENT, field `page_token`; this server did not issue the token,
            or it belongs to another filter.
    """
    parts = _parts(token)
    if parts is None:
        raise _bad("must be the next_page_token of an earlier response")
    fingerprint, position = parts
    if fingerprint != _fingerprint(filter_):
        raise _bad("must be used with the same filter as the page before")
    return position


def _parts(token: str) -> tuple[str, Position] | None:
    """Return the fingerprint and position of a token; None: it is no token."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        return None
    padded = token + "=" * (-len(token) % 4)
    try:
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    match parts:
        case [int(version), str(fingerprint), int(time), str(device), str(spool), int(sequence)]:
            position = Position(time, device, spool, sequence)
        case _:
            return None
    fits = version == _VERSION and _is_valid_in_sql(position)
    return (fingerprint, position) if fits else None


def _is_valid_in_sql(position: Position) -> bool:
    """Return True if SQL can represent the position: JSON has larger numbers and surrogates."""
    names = position.device_id + position.spool_id
    numbers = (position.received_us, position.sequence)
    whole = not any("\ud800" <= character <= "\udfff" for character in names)
    return whole and all(_LIMITS[0] <= number <= _LIMITS[1] for number in numbers)


def _fingerprint(filter_: Filter) -> str:
    return hashlib.sha256(repr(filter_).encode()).hexdigest()[:16]


def _bad(rule: str) -> SightlineError:
    return invalid("page_token", rule, reason="INVALID_PAGE_TOKEN")
