"""Reads the headers of DuckDB's files, and where the transactions of a log end.

Pure. It knows what DuckDB 1.4 and 1.5 write.
Source: `storage_info.hpp`, `write_ahead_log.cpp` and `checksum.cpp` of DuckDB 1.5.
"""

from typing import NamedTuple

import numpy as np

HEADER_BYTES = 3 * 4096
"""What `parse_database` reads: the main header, and the two that checkpoints write in turn."""
_MAGIC, _MAGIC_AT = b"DUCK", 8
_VERSION_AT, _IDENTIFIER_AT, _IDENTIFIER = 12, 124, 16
_PAGE = 4096
_FLUSH = bytes.fromhex("0500000000000000") + bytes.fromhex("640064ffff")
"""A commit's last entry without its checksum: size, and the fields of the entry `WAL_FLUSH`."""
_ENTRY = 16
"""Bytes before an entry: its size and its checksum, 8 bytes each."""
_MASK = (1 << 64) - 1


class DatabaseHeader(NamedTuple):
    """What a database file says of itself."""

    version: int
    """Of the format: 64 up to DuckDB 1.1; from 67 on, logs name the checkpoint they follow."""
    identifier: bytes
    """Chosen at random when the file was made; zeros before version 67."""
    iteration: int
    """How many checkpoints it has had."""


class LogHeader(NamedTuple):
    """What a write-ahead log says of itself."""

    size: int
    """Bytes of the header."""
    identifier: bytes | None
    """Of the database that it belongs to; None: it does not say, and neither the iteration."""
    iteration: int
    """Of the checkpoint that it follows."""


class Damage(NamedTuple):
    """Where a log cannot be read any further."""

    good: int
    """End of the last transaction that can be read, bytes; 0: there is none."""
    found: int
    """Where the first entry begins that is cut off or wrong."""


def parse_database(head: bytes) -> DatabaseHeader | None:
    """Return the header of a database file; None: these bytes are none.

    Args:
        head: the first `HEADER_BYTES` of the file.
    """
    if len(head) < HEADER_BYTES or head[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        return None
    return DatabaseHeader(
        _uint64(head, _VERSION_AT),
        head[_IDENTIFIER_AT : _IDENTIFIER_AT + _IDENTIFIER],
        max(_uint64(head, 4096 + 8), _uint64(head, 2 * 4096 + 8)),
    )


def parse_log(head: bytes) -> LogHeader | None:
    """Return the header of a write-ahead log; None: these bytes are none.

    Args:
        head: the first 256 bytes of the file, or all.
    """
    try:
        at = _expect(head, 0, b"d\x00b")
        version, at = _varint(head, _expect(head, at, b"e\x00"))
        if version != 2:  # 1 has no checksums, 3 is encrypted: this service writes neither
            return None
        identifier, iteration = None, 0
        if head[at : at + 2] == b"f\x00":
            count, at = _varint(head, at + 2)
            values = []
            for _ in range(count):
                value, at = _varint(head, at)
                values.append(value)
            identifier = bytes(values)
            iteration, at = _varint(head, _expect(head, at, b"g\x00"))
        return LogHeader(_expect(head, at, b"\xff\xff"), identifier, iteration)
    except (IndexError, ValueError):
        return None


def find_damage(log: memoryview, *, verify: bool) -> Damage | None:
    """Return where a write-ahead log cannot be read any further; None: it ends with a commit.

    Args:
        log: all of it.
        verify: whether to verify the checksum of each entry, and not only its size. That takes
            about a second per GiB, and 15 us for each entry.
    """
    header = parse_log(bytes(log[:256]))
    if header is None:
        return Damage(0, 0) if len(log) else None
    at, good, end = header.size, 0, len(log)
    while at < end:
        if at + _ENTRY > end:
            return Damage(good, at)
        size = int.from_bytes(log[at : at + 8], "little")
        after = at + _ENTRY + size
        if size == 0 or after > end:
            return Damage(good, at)
        if verify and _checksum(log[at + _ENTRY : after]) != _uint64(log, at + 8):
            return Damage(good, at)
        if size == 5 and log[at + _ENTRY : after] == _FLUSH[8:]:
            good = after
        at = after
    return None if good == end else Damage(good, end)


def later_commit(log: memoryview, damage: Damage) -> bool:
    """Return whether a transaction was committed behind the one that is damaged.

    DuckDB syncs the log before a COMMIT returns, and lets no other begin to write before: what a
    power failure may take is the last transaction alone.
    """
    tail = bytes(log[damage.good :])
    at = tail.find(_FLUSH[:8])
    while at >= 0:
        after = at + _ENTRY + 5
        if tail[at + _ENTRY : after] == _FLUSH[8:] and damage.good + after < len(log):
            return True
        at = tail.find(_FLUSH[:8], at + 1)
    return False


def ends_with_commit(log: memoryview) -> bool:
    """Return whether the last bytes are those that every commit ends with: it was not cut off."""
    last = bytes(log[-(_ENTRY + 5) :])
    return last[:8] == _FLUSH[:8] and last[_ENTRY:] == _FLUSH[8:]


def has_hole(log: memoryview, damage: Damage) -> bool:
    """Return whether part of what is behind the last good transaction never came to the disk.

    Such a page is all zeros, and so is what a page shared with good bytes has behind them.
    """
    start = damage.good
    while start < len(log):
        end = min((start // _PAGE + 1) * _PAGE, len(log))
        if not any(log[start:end]):
            return True
        start = end
    return False


def _checksum(payload: memoryview) -> int:
    whole = len(payload) // 8 * 8
    words = np.frombuffer(payload[:whole], dtype="<u8") * np.uint64(0xBF58476D1CE4E5B9)
    result = 5381 ^ int(np.bitwise_xor.reduce(words))
    if whole < len(payload):
        result ^= _checksum_of_rest(bytes(payload[whole:]))
    return result


def _checksum_of_rest(rest: bytes) -> int:
    """Return what the last 1 to 7 bytes add: a round of MurmurHash."""
    m = 0xC6A4A7935BD1E995
    h = 0xE17A1465 ^ (len(rest) * m & _MASK)
    h = (h ^ int.from_bytes(rest, "little")) * m & _MASK
    h = (h ^ (h >> 47)) * m & _MASK
    return h ^ (h >> 47)


def _uint64(data: bytes | memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _expect(head: bytes, at: int, field: bytes) -> int:
    if head[at : at + len(field)] != field:
        raise ValueError(f"{field!r} is not at {at}")
    return at + len(field)


def _varint(head: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned LEB128 number, and where it ends."""
    value = shift = 0
    while True:
        byte = head[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
