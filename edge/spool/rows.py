"""The encoding of the rows of a spool file: checksums, numbering, and merging with gaps."""

import heapq
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edge.spool.entries import Entry, Gap, Row
from edge.wire import sequence_field, varint

_32_BITS = 0xFFFFFFFF
_FIELDS = tuple(bytes([8, digit]) for digit in range(256))


def sequence_fields(first: int) -> Iterator[bytes]:
    """Yield the `sequence_field` of a sequence and its successors, faster than single calls."""
    high, low = divmod(first, 128)
    while True:
        start, rest = (128, varint(high)) if high else (0, b"")
        for digit in range(low, 128):
            yield _FIELDS[start + digit] + rest
        high, low = high + 1, 0


def tag_of(spool_id: str) -> int:
    """Return the value that a spool mixes into the checksums of its rows."""
    return zlib.crc32(spool_id.encode())


def checksum(prediction: bytes, sequence: int, tag: int) -> int:
    """Return the checksum of a prediction, its sequence and its spool.

    It covers the spool, so that an old version of a renumbered row, found in an unused part of the
    file, is not mistaken for a current row.
    """
    return zlib.crc32(prediction) ^ tag ^ (sequence & _32_BITS)


def tag_in(check: int, prediction: bytes, sequence: int) -> int:
    """Return the tag in a row's checksum, which is right if the row is unchanged."""
    return zlib.crc32(prediction) ^ check ^ (sequence & _32_BITS)


def is_intact(sequence: int, check: object, prediction: object, tag: int) -> bool:
    """Return True if a row matches its checksum."""
    return (
        isinstance(prediction, bytes)
        and (zlib.crc32(prediction) ^ tag ^ (sequence & _32_BITS)) == check
    )


def is_intact_unbound(sequence: int, check: object, prediction: object) -> bool:
    """Return True if a row of version 1 matches its checksum."""
    return (
        isinstance(prediction, bytes)
        and zlib.crc32(prediction) == check
        and prediction.startswith(sequence_field(sequence))
    )


def renumbered(prediction: bytes, old: int, new: int) -> bytes:
    """Return a prediction with its sequence changed."""
    return sequence_field(new) + prediction[len(sequence_field(old)) :]


def merge(
    after: int, through: int, rows: Sequence[Row], gaps: Sequence[Gap]
) -> tuple[list[Entry], list[tuple[int, int]]]:
    """Return rows and gaps as one run without overlaps, and the runs of sequences in neither.

    Args:
        after: the sequence before the first of the run.
        through: the last sequence of the run; a gap may extend beyond it.
        rows: in ascending order.
        gaps: in ascending order.
    """
    if not gaps and len(rows) == through - after:
        return list(rows), []
    entries: list[Entry] = []
    missing: list[tuple[int, int]] = []
    position = after
    for first, entry in heapq.merge(_by_first(rows), _by_first(gaps), key=lambda pair: pair[0]):
        if first > through:
            break
        if entry.sequence <= position:
            continue
        if first > position + 1:
            missing.append((position + 1, first - 1))
        if isinstance(entry, Gap) and first <= position:
            entry = replace(entry, first=position + 1)
        entries.append(entry)
        position = entry.sequence
    if position < through:
        missing.append((position + 1, through))
    return entries, missing


def up_to(entries: Sequence[Entry], end: int | None) -> list[Entry]:
    """Return the entries up to and including a sequence; cut a gap that extends beyond it.

    Args:
        entries: entries in ascending order.
        end: the sequence. None: return all entries.
    """
    if end is None or not entries or entries[-1].sequence <= end:
        return list(entries)
    kept = [entry for entry in entries if entry.sequence <= end]
    following = entries[len(kept)]
    if isinstance(following, Gap) and following.first <= end:
        kept.append(replace(following, last=end))
    return kept


def _by_first(entries: Sequence[Entry]) -> list[tuple[int, Entry]]:
    return [(e.first if isinstance(e, Gap) else e.sequence, e) for e in entries]
