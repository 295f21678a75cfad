"""Page tokens: where the next page of a listing starts.

Pure. A token is opaque to its bearer and good for one filter only: it holds the last position of
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


def encode_token(position: Position, which: Filter) -> str:
    """Return the token of the page that follows this position."""
    parts = [_VERSION, _fingerprint(which), *position]
    text = json.dumps(parts, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_token(token: str, which: Filter) -> Position:
    """Return the position that the page follows.

    Raises:
        SightlineError: INVALID_ARGUMENT, field `page_token`; it is no token of this server's, or
            one of another filter.
    """
    parts = _parts(token)
    if parts is None:
        raise _bad("must be the next_page_token of an earlier answer")
    fingerprint, position = parts
    if fingerprint != _fingerprint(which):
        raise _bad("must be used with the filter of the page it came with")
    return position


def _parts(token: str) -> tuple[str, Position] | None:
    """Return fingerprint and position; None: it is no token."""
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
    fits = version == _VERSION and _can_be_asked_for(position)
    return (fingerprint, position) if fits else None


def _can_be_asked_for(position: Position) -> bool:
    """Return whether SQL can hold the position: JSON has larger numbers and half characters."""
    names = position.device_id + position.spool_id
    numbers = (position.received_us, position.sequence)
    whole = not any("\ud800" <= character <= "\udfff" for character in names)
    return whole and all(_LIMITS[0] <= number <= _LIMITS[1] for number in numbers)


def _fingerprint(which: Filter) -> str:
    return hashlib.sha256(repr(which).encode()).hexdigest()[:16]


def _bad(rule: str) -> SightlineError:
    return invalid("page_token", rule, reason="INVALID_PAGE_TOKEN")
