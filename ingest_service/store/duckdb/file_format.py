"""Parser for the headers of DuckDB's files and for the transactions in its write-ahead log.

Pure. It covers the formats of DuckDB 1.4 and 1.5.
Source: `storage_info.hpp`, `write_ahead_log.cpp` and `checksum.cpp` of DuckDB 1.5.
"""

from typing import NamedTuple

import numpy as np

HEADER_BYTES = 3 * 4096
"""Bytes for `parse_database`: the main header and the two that checkpoints write in turn."""
_MAGIC, _MAGIC_AT = b"DUCK", 8
_VERSION_AT, _IDENTIFIER_AT, _IDENTIFIER = 12, 124, 16
_PAGE = 4096
_FLUSH = bytes.fromhex("0500000000000000") + bytes.fromhex("640064ffff")
"""The last entry of a commit, without its checksum: size and fields of a `WAL_FLUSH` entry."""
_ENTRY = 16
"""Bytes before an entry: its size and its checksum, 8 bytes each."""
_MASK = (1 << 64) - 1


class DatabaseHeader(NamedTuple):
    """The header of a database file."""

    version: int
    """Format version: 64 up to DuckDB 1.1; from 67 on, logs name the checkpoint they follow."""
    identifier: bytes
    """Random identifier, chosen when the file is created; zeros before version 67."""
    iteration: int
    """Number of checkpoints so far."""


class LogHeader(NamedTuple):
    """The header of a write-ahead log."""

    size: int
    """Size of the header, bytes."""
    identifier: bytes | None
    """Identifier of its database; None: the log names neither database nor iteration."""
    iteration: int
    """Number of the checkpoint that the log follows."""


class Damage(NamedTuple):
    """The position from which a log cannot be read."""

    good: int
    """End of the last readable transaction, bytes; 0: there is none."""
    damaged: int
    """Start of the first entry that is cut off or wrong, bytes."""


def parse_database(head: bytes) -> DatabaseHeader | None:
    """Return the header of a database file; None: the bytes are no such header.

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
    """Return the header of a write-ahead log; None: the bytes are no such header.

    Args:
        head: the first 256 bytes of the file, or all of a shorter file.
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
    """Return the first damage of a write-ahead log; None: it is sound and ends with a commit.

    Args:
        log: the whole log.
        verify: True: verify the checksum of each entry, not only its size. This takes about one
            second per GiB plus 15 us per entry.
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
    """Return True if a transaction was committed after the damaged one.

    DuckDB syncs the log before a COMMIT returns, and no other transaction writes before that. So a
    power failure can damage only the last transaction.
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
    """Return True if the log ends with the last entry of a commit: it was not cut off."""
    last = bytes(log[-(_ENTRY + 5) :])
    return last[:8] == _FLUSH[:8] and last[_ENTRY:] == _FLUSH[8:]


def has_hole(log: memoryview, damage: Damage) -> bool:
    """Return True if a page after the last good transaction was never written to the disk.

    Such a page is all zeros, and so is the rest of a page that begins with good bytes.
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
    """Return the hash of the last 1 to 7 bytes: one round of MurmurHash."""
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
    """Return an unsigned LEB128 number and its end."""
    value = shift = 0
    while True:
        byte = head[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
