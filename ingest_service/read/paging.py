"""Pages of a listing: their size, and the tokens that hold the start of the next page.

Pure. A token is opaque to clients and valid for one filter only: it contains the last position of
its page and a fingerprint of the filter.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ingest_service.store.protocol import Position
from servicekit.errors import SightlineError, invalid

MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100
_FRAME_BYTES = 8
"""Size of a message's tag and length in a page, at most, bytes."""
MAX_TOKEN_CHARACTERS = 4096
_VERSION = 1
_LIMITS = (-(2**63), 2**63 - 1)
_TIMES_US = (-(2**62), 253_402_300_800_000_000)
"""Times that a store can have, us since 1970: to the end of the year 9999. DuckDB's end later."""


class _Message(Protocol):
    def ByteSize(self) -> int: ...  # noqa: N802 - protobuf's name


_Row = TypeVar("_Row")
_M = TypeVar("_M", bound=_Message)
_Added = TypeVar("_Added", contravariant=True)


class _Messages(Protocol[_Added]):
    """A repeated field of messages."""

    def append(self, message: _Added, /) -> None: ...
    def __len__(self) -> int: ...


def page_size(size: int) -> int:
    """Return the maximum number of entries on a page.

    Raises:
        SightlineError: INVALID_ARGUMENT, field `page_size`; it is out of bounds.
    """
    if not 0 <= size <= MAX_PAGE_SIZE:
        rule = f"must be 0 (for {DEFAULT_PAGE_SIZE}) to {MAX_PAGE_SIZE}, got {size}"
        raise invalid("page_size", rule)
    return size or DEFAULT_PAGE_SIZE


def fill_page(
    page: _Messages[_M],
    read: Callable[[int, Position | None], Sequence[_Row]],
    as_message: Callable[[_Row], tuple[_M, Position]],
    size: int,
    after: Position | None,
    limit: int,
    portion: int = DEFAULT_PAGE_SIZE,
) -> Position | None:
    """Add the entries of a page, and return the position of its last if another page follows.

    Rows are read in portions, so that many large ones are not in memory together. The size of the
    second portion is estimated from the first.

    Args:
        page: the empty page.
        read: returns at most so many rows after a position.
        as_message: returns a row as an entry of the page, and its position.
        size: maximum number of entries, >= 1.
        after: position of the last entry of the page before; None: the first page.
        limit: maximum size of a page of more than one entry, bytes.
        portion: number of rows in the first portion, >= 1.
    """
    used = 0
    while True:
        count = min(size - len(page), portion)
        rows = read(count + 1, after)  # one more shows if another page follows
        for row in rows[:count]:
            message, position = as_message(row)
            used += message.ByteSize() + _FRAME_BYTES
            if len(page) and used > limit:
                return after
            page.append(message)
            after = position
        if len(rows) <= count:
            return None
        if len(page) == size:
            return after
        portion = max((limit - used) * len(page) // used, 1)


def encode_token(position: Position, filter_: object) -> str:
    """Return the token of the page that follows this position."""
    parts = [_VERSION, _fingerprint(filter_), *position]
    text = json.dumps(parts, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_token(token: str, filter_: object) -> Position:
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
    """Return True if SQL can represent the position: JSON has larger ones and surrogates."""
    names = position.device_id + position.spool_id
    whole = not any("\ud800" <= character <= "\udfff" for character in names)
    timely = _TIMES_US[0] <= position.received_us <= _TIMES_US[1]
    return whole and timely and _LIMITS[0] <= position.sequence <= _LIMITS[1]


def _fingerprint(filter_: object) -> str:
    return hashlib.sha256(repr(filter_).encode()).hexdigest()[:16]


def _bad(rule: str) -> SightlineError:
    return invalid("page_token", rule, reason="INVALID_PAGE_TOKEN")
