"""The size that a video file's own container gives it, which tells a file that was cut off.

A file that a full disk or a broken copy cut off plays up to there, and then ends like any other.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from servicekit.media_kinds import ISO_BOXES

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_SLOPPY_BYTES = 8  # writers of AVI count the head of the file, or forget to pad its end


def missing_bytes(path: Path) -> int:
    """Return how many bytes a container says that its file has and it lacks; 0: none, or not known.

    MP4 and MOV (ISO/IEC 14496-12), AVI (RIFF) and Matroska with WebM (RFC 9559) say it. Transport
    streams and raw streams do not.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in ISO_BOXES:
            ends = _ends_of_boxes(file)
        elif head[:4] == b"RIFF":
            ends = _ends_of_chunks(file)
        elif head[:4] == _EBML:
            ends = _ends_of_elements(file)
        else:
            return 0
        missing = max(ends, default=size) - size
        return missing if missing > _SLOPPY_BYTES else 0


def _ends_of_boxes(file: IO[bytes]) -> Iterator[int]:
    """Yield the end of each box; a size that damage has overwritten ends the search."""
    at = 0
    while head := _read(file, at, 16):
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:  # a size of 64 bits follows
            length = int.from_bytes(head[8:16], "big")
        if length < 8 or not kind.isascii() or not kind.decode("ascii").isprintable():
            return
        at += length
        yield at


def _ends_of_chunks(file: IO[bytes]) -> Iterator[int]:
    at = 0
    while (head := _read(file, at, 8))[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        if length in (0, 0xFFFFFFFF):  # a writer that was killed
            return
        at += 8 + length
        yield at
        at += length % 2


def _ends_of_elements(file: IO[bytes]) -> Iterator[int]:
    at = 0
    while head := _read(file, at, 12):
        if head[:4] not in (_EBML, _SEGMENT) or not head[4]:
            return
        width = 9 - head[4].bit_length()
        length = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if length == (1 << 7 * width) - 1:  # not known: a live stream
            return
        at += 4 + width + length
        yield at


def _read(file: IO[bytes], at: int, count: int) -> bytes:
    """Return the bytes at a place; empty: fewer than eight are there."""
    file.seek(at, os.SEEK_SET)
    head = file.read(count)
    return head if len(head) >= 8 else b""
