"""HTTP/2 frames of a raw client (RFC 9113). Pure: bytes in, bytes out.

Written by hand, because a library's state machine refuses what a hostile client does:
more streams than the server allows, half a message, a reset right behind the headers.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW = 65_535
"""Initial flow-control window of a peer, bytes."""
LARGEST_WINDOW = 2**31 - 1
_HEAD = struct.Struct(">BHBBI")
_MESSAGE_HEAD = struct.Struct(">BI")


class Kind(IntEnum):
    """The type of an HTTP/2 frame."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """The identifier of an HTTP/2 setting."""

    HEADER_TABLE_SIZE = 1
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
CANCEL = 0x8
"""Error code of a client that does not want the answer any more."""


class Http2Frame(NamedTuple):
    """One frame."""

    kind: int
    flags: int
    stream: int
    """0 means the connection."""
    payload: bytes

    def __bytes__(self) -> bytes:
        size = len(self.payload)
        return _HEAD.pack(size >> 16, size & 0xFFFF, self.kind, self.flags, self.stream) + (
            self.payload
        )


def parse(buffer: bytes) -> tuple[list[Http2Frame], bytes]:
    """Return the complete frames of a buffer, and the bytes after them."""
    parsed, at = [], 0
    while len(buffer) - at >= _HEAD.size:
        high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
        end = at + _HEAD.size + (high << 16 | low)
        if end > len(buffer):
            break
        parsed.append(
            Http2Frame(kind, flags, stream & LARGEST_WINDOW, buffer[at + _HEAD.size : end])
        )
        at = end
    return parsed, buffer[at:]


def settings(values: Mapping[Setting, int]) -> bytes:
    """Return a SETTINGS frame."""
    payload = b"".join(struct.pack(">HI", name, value) for name, value in values.items())
    return bytes(Http2Frame(Kind.SETTINGS, 0, 0, payload))


def settings_of(payload: bytes) -> dict[int, int]:
    """Return the values in a SETTINGS frame."""
    return dict(struct.iter_unpack(">HI", payload))


def window_update(stream: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE frame, which permits this many more bytes."""
    return bytes(Http2Frame(Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", size)))


def reset(stream: int, code: int = CANCEL) -> bytes:
    """Return a RST_STREAM frame."""
    return bytes(Http2Frame(Kind.RST_STREAM, 0, stream, struct.pack(">I", code)))


def headers(stream: int, block: bytes, *, end: bool = False) -> bytes:
    """Return a HEADERS frame with a complete block."""
    return bytes(Http2Frame(Kind.HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block))


def data(stream: int, payload: bytes, *, end: bool = False) -> bytes:
    """Return a DATA frame."""
    return bytes(Http2Frame(Kind.DATA, END_STREAM if end else 0, stream, payload))


def message_head(size: int) -> bytes:
    """Return the five bytes before a gRPC message of this size."""
    return _MESSAGE_HEAD.pack(0, size)


def block(method: str, metadata: Sequence[tuple[str, str]] = (), timeout: str = "") -> bytes:
    """Return the header block of a gRPC call, independent of earlier blocks.

    Args:
        method: path of the call, `/package.Service/Method`.
        metadata: further headers, such as `authorization`.
        timeout: `grpc-timeout`, such as `5S`; empty for none.
    """
    every = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *([("grpc-timeout", timeout)] if timeout else ()),
        *metadata,
    ]
    # Never indexed, so that any connection can send the same block again.
    return hpack.Encoder().encode([(name, value, True) for name, value in every])


def fields(encoded: bytes) -> dict[str, str]:
    """Return the fields of a block whose sender uses no dynamic table."""
    pairs: Iterable[tuple[bytes, bytes]] = hpack.Decoder().decode(encoded, raw=True)
    return {bytes(name).decode(): bytes(value).decode("latin-1") for name, value in pairs}
