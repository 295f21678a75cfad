"""File carving: a search for predictions in the raw bytes of a damaged SQLite file.

A row begins with a header that hardly any other bytes match, and its checksum confirms it. So
neither the tree of pages has to be intact, nor the chain of checksums in the write-ahead log, at
whose first break SQLite stops reading.

See https://www.sqlite.org/fileformat2.html: "Record Format", "Cell Payload Overflow Pages" and
"The WAL File Format".
"""

import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from edge.spool.identity import DamagedError, Identity, decode

_PAGE_SIZE = 4096  # if the file does not say
_CHUNK_PAGES = 1024
_WAL_HEADER, _FRAME_HEADER = 32, 24
# A record header: its size; a key, which is stored elsewhere; a time; a checksum. A BLOB follows.
_ROW = re.compile(rb"[\x05-\x09]\x00[\x01-\x09][\x01-\x06\x08\x09]")
_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8, 8: 0, 9: 0}
_FLOAT, _DOUBLE = 7, struct.Struct(">d")
_IDENTITY = re.compile(rb'\{"version": \d')
_MAX_IN_IDENTITY = 4096
_MAX_IN_ROW = 1 << 28


@dataclass(frozen=True, slots=True)
class Carved:
    """A candidate for a row."""

    sequence: int
    """Sequence in the prediction itself."""
    spooled_at: float
    check: int
    prediction: bytes


class Carver:
    """A reader of the raw bytes of a spool file and its log, which must not change meanwhile.

    Args:
        path: the spool file. Missing files count as empty.

    Raises:
        OSError: a file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with ExitStack() as stack:
            self._main = _open(path)
            stack.callback(_close, self._main)
            self._wal = _open(Path(f"{path}-wal"))
            stack.callback(_close, self._wal)
            self._page_size = self._find_page_size()
            self._reserved = _likely_reserved(self._read(self._main, 20, 1))
            self._frames: dict[int, int] | None = None
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def identities(self) -> Iterator[Identity]:
        """Yield the readable versions of the spool's identity, usually the latest last.

        Raises:
            SightlineError: a later version wrote it (`SPOOL_TOO_NEW`).
        """
        for _, pages in self._chunks():
            for match in _IDENTITY.finditer(pages):
                identity = _identity_at(pages, match.start())
                if identity is not None:
                    yield identity

    def rows(self) -> Iterator[Carved]:
        """Yield candidates for rows, some repeatedly. The caller must check their checksums."""
        for descriptor, pages in self._chunks():
            # A match may be the remains of an overwritten row, so do not skip matches inside it.
            for match in _ROW.finditer(pages):
                yield from self._row_at(descriptor, pages, match.start())

    def _chunks(self) -> Iterator[tuple[int | None, bytes]]:
        """Yield chunks of whole pages or log frames, with the file descriptor they are from."""
        for descriptor, start, size in (
            (self._main, 0, self._page_size),
            (self._wal, _WAL_HEADER, _FRAME_HEADER + self._page_size),
        ):
            step = size * _CHUNK_PAGES
            for offset in range(start, _size(descriptor), step):
                yield descriptor, self._read(descriptor, offset, step)

    def _row_at(self, descriptor: int | None, pages: bytes, start: int) -> Iterator[Carved]:
        """Yield candidates for the row with its header at `start`: none, one or two versions."""
        serial, body = _varint(pages, start + 4)
        length = (serial - 12) // 2
        if pages[start] != body - start or serial < 14 or serial % 2 or length > _MAX_IN_ROW:
            return
        time_size, check_size = _SIZES[pages[start + 2]], _SIZES[pages[start + 3]]
        payload = (body - start) + time_size + check_size + length
        local = self._local_size(payload)
        first = pages[body + time_size + check_size : start + local]
        if not first.startswith(b"\x08"):
            return
        sequence = _sequence(first)
        spooled_at = _real(pages[start + 2], pages[body : body + time_size])
        check = _integer(pages[start + 3], pages[body + time_size : body + time_size + check_size])
        end = start + local
        if local == payload:
            yield Carved(sequence, spooled_at, check, first)
            return
        next_page = int.from_bytes(pages[end : end + 4], "big")
        for in_log in (descriptor == self._wal, descriptor != self._wal):
            rest = self._overflow(next_page, length - len(first), in_log=in_log)
            yield Carved(sequence, spooled_at, check, first + rest)

    def _overflow(self, page: int, size: int, *, in_log: bool) -> bytes:
        """Return the part of a row that is in overflow pages, as far as it can be followed."""
        parts, capacity = [], self._page_size - self._reserved - 4
        while page and size > 0:
            content = self._page(page, in_log=in_log)
            if len(content) < 4:
                break
            parts.append(content[4 : 4 + min(size, capacity)])
            page, size = int.from_bytes(content[:4], "big"), size - capacity
        return b"".join(parts)

    def _page(self, number: int, *, in_log: bool) -> bytes:
        if self._frames is None:
            self._frames = dict(self._frame_pages())
        if in_log and number in self._frames:
            return self._read(self._wal, self._frames[number], self._page_size)
        return self._read(self._main, (number - 1) * self._page_size, self._page_size)

    def _frame_pages(self) -> Iterator[tuple[int, int]]:
        """Yield the page number and the offset of the content of each log frame."""
        step = _FRAME_HEADER + self._page_size
        for offset in range(_WAL_HEADER, _size(self._wal), step):
            number = int.from_bytes(self._read(self._wal, offset, 4), "big")
            yield number, offset + _FRAME_HEADER

    def _local_size(self, payload: int) -> int:
        usable = self._page_size - self._reserved
        if payload <= usable - 35:
            return payload
        minimum = (usable - 12) * 32 // 255 - 23
        size = minimum + (payload - minimum) % (usable - 4)
        return size if size <= usable - 35 else minimum

    def _find_page_size(self) -> int:
        fields = (self._read(self._main, 16, 2), self._read(self._wal, 8, 4))
        sizes = [int.from_bytes(field, "big") for field in fields]
        likely = [size for size in sizes if 512 <= size <= 32768 and size.bit_count() == 1]
        return _PAGE_SIZE if _PAGE_SIZE in likely or not likely else likely[0]

    @staticmethod
    def _read(descriptor: int | None, offset: int, size: int) -> bytes:
        return b"" if descriptor is None else os.pread(descriptor, size, offset)


def _identity_at(pages: bytes, start: int) -> Identity | None:
    text = pages[start : start + _MAX_IN_IDENTITY].decode("ascii", "replace")
    with suppress(ValueError, TypeError, KeyError, DamagedError):
        _, size = json.JSONDecoder().raw_decode(text)
        check = zlib.crc32(text[:size].encode())
        follows = pages[start + size : start + size + 6]
        if any(follows.startswith(check.to_bytes(n, "big")) for n in _widths(check)):
            return decode(text[:size], check, "the file")
    return None


def _widths(number: int) -> list[int]:
    """Return the numbers of bytes in which SQLite may have stored a number."""
    return [n for n in (1, 2, 3, 4, 6) if number < 1 << (8 * n - 1)]


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """Return the SQLite varint (big-endian) at an offset, and the offset of its end."""
    number, position = 0, start
    for position in range(start, min(start + 9, len(data))):
        number = number << 7 | data[position] & 127
        if data[position] < 128:
            break
    return number, position + 1


def _sequence(prediction: bytes) -> int:
    """Return the protobuf varint (little-endian) in the first field of a prediction."""
    number = 0
    for shift, digit in enumerate(prediction[1:11]):
        number |= (digit & 127) << 7 * shift
        if digit < 128:
            break
    return number


def _real(kind: int, data: bytes) -> float:
    if kind == _FLOAT and len(data) == _DOUBLE.size:
        return float(_DOUBLE.unpack(data)[0])
    return float(_integer(kind, data))


def _likely_reserved(field: bytes) -> int:
    """Return the number of reserved bytes at the end of each page."""
    return field[0] if field and field[0] <= 32 else 0


def _integer(kind: int, data: bytes) -> int:
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(data, "big", signed=True)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _size(descriptor: int | None) -> int:
    return 0 if descriptor is None else os.fstat(descriptor).st_size
