"""Validation of the messages of one upload. Pure."""

from dataclasses import dataclass

from servicekit.errors import SightlineError, invalid
from vision import ImageError

MAX_CHUNK_BYTES = 1024 * 1024
_SHA256_BYTES = 32


@dataclass(frozen=True, slots=True)
class Header:
    """The declaration at the start of an upload."""

    sha256: bytes
    size: int
    """Size in bytes."""


Part = Header | bytes | None
"""One message: a header or a chunk; None if it contains neither."""


def check_first(part: Part, max_bytes: int) -> Header:
    """Return the header of an upload.

    Args:
        part: the first message; None also if there is no message.
        max_bytes: size of the largest accepted image.

    Raises:
        SightlineError: INVALID_ARGUMENT: `UPLOAD_HEADER_MISSING`; `IMAGE_TOO_LARGE`, before any
            chunk is sent; `INVALID_FIELD`.
    """
    if not isinstance(part, Header):
        raise invalid("header", "must be the first message", reason="UPLOAD_HEADER_MISSING")
    if len(part.sha256) != _SHA256_BYTES:
        raise invalid("header.sha256", f"must be 32 bytes, got {len(part.sha256)} bytes")
    if part.size < 1:
        raise invalid("header.size_bytes", f"must be at least 1, got {part.size}")
    if part.size > max_bytes:
        rule = f"must be at most {max_bytes}, got {part.size}"
        raise invalid("header.size_bytes", rule, reason="IMAGE_TOO_LARGE")
    return part


def check_next(part: Part, header: Header, received: int) -> bytes:
    """Return the bytes of a message after the first.

    Args:
        part: the message.
        header: header of the upload.
        received: number of bytes before this message.

    Raises:
        SightlineError: INVALID_ARGUMENT: `UPLOAD_HEADER_REPEATED`, `UPLOAD_CHUNK_MISSING`,
            `UPLOAD_CHUNK_EMPTY`, `UPLOAD_CHUNK_TOO_LARGE`, or `UPLOAD_TOO_LONG`: more bytes than
            the header declares.
    """
    if isinstance(part, Header):
        rule = "must be in the first message only"
        raise invalid("header", rule, reason="UPLOAD_HEADER_REPEATED")
    if part is None:
        rule = "must be in every message after the first"
        raise invalid("chunk", rule, reason="UPLOAD_CHUNK_MISSING")
    if not part:
        raise invalid("chunk", "must be at least 1 byte, got 0 bytes", reason="UPLOAD_CHUNK_EMPTY")
    if len(part) > MAX_CHUNK_BYTES:
        rule = f"must be at most {MAX_CHUNK_BYTES} bytes, got {len(part)} bytes"
        raise invalid("chunk", rule, reason="UPLOAD_CHUNK_TOO_LARGE")
    if received + len(part) > header.size:
        rule = f"must end at the {header.size} bytes that header.size_bytes declares"
        raise invalid("chunk", rule, reason="UPLOAD_TOO_LONG")
    return part


def check_end(header: Header, received: int, sha256: bytes) -> None:
    """Check size and hash once all chunks have arrived.

    Raises:
        SightlineError: INVALID_ARGUMENT: `UPLOAD_INCOMPLETE`: fewer bytes than declared;
            `IMAGE_HASH_MISMATCH`.
    """
    if received < header.size:
        rule = f"must be the number of bytes sent, {received}, got {header.size}"
        raise invalid("header.size_bytes", rule, reason="UPLOAD_INCOMPLETE")
    if sha256 != header.sha256:
        rule = f"must be the SHA-256 of the chunks, which is {sha256.hex()}"
        raise invalid("header.sha256", rule, reason="IMAGE_HASH_MISMATCH")


def bad_content(error: ImageError) -> SightlineError:
    """Return the error for complete bytes that are not an accepted image."""
    return invalid("chunk", f"is refused: {error.message}", reason=error.reason)
