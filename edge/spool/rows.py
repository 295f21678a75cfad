"""What the rows of a spool file mean."""

import heapq
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edge.spool.entries import Entry, Gap, Row
from edge.wire import sequence_field, varint

_32_BITS = 0xFFFFFFFF
_FIELDS = tuple(bytes([8, digit]) for digit in range(256))


def sequence_fields(first: int) -> Iterator[bytes]:
    """Yield what `sequence_field` returns, for a sequence and all that follow it, faster."""
    high, low = divmod(first, 128)
    while True:
        start, rest = (128, varint(high)) if high else (0, b"")
        for digit in range(low, 128):
            yield _FIELDS[start + digit] + rest
        high, low = high + 1, 0


def tag_of(spool_id: str) -> int:
    """Return what the checksums of a spool's rows have in common."""
    return zlib.crc32(spool_id.encode())


def checksum(prediction: bytes, sequence: int, tag: int) -> int:
    """Return what is kept beside a prediction, to notice when anything about it changes.

    It names the spool, so that a row that was once renumbered, and is found again in a part of the
    file that is not in use, is not taken for another.
    """
    return zlib.crc32(prediction) ^ tag ^ (sequence & _32_BITS)


def tag_in(check: int, prediction: bytes, sequence: int) -> int:
    """Return the tag that a row's checksum was made with, if nothing about the row changed."""
    return zlib.crc32(prediction) ^ check ^ (sequence & _32_BITS)


def is_intact(sequence: int, check: object, prediction: object, tag: int) -> bool:
    """Say whether a row is what was written."""
    return (
        isinstance(prediction, bytes)
        and (zlib.crc32(prediction) ^ tag ^ (sequence & _32_BITS)) == check
    )


def is_intact_unbound(sequence: int, check: object, prediction: object) -> bool:
    """Say whether a row of version 1 is what was written."""
    return (
        isinstance(prediction, bytes)
        and zlib.crc32(prediction) == check
        and prediction.startswith(sequence_field(sequence))
    )


def renumbered(prediction: bytes, old: int, new: int) -> bytes:
    """Return a prediction under another sequence."""
    return sequence_field(new) + prediction[len(sequence_field(old)) :]


def merge(
    after: int, through: int, rows: Sequence[Row], gaps: Sequence[Gap]
) -> tuple[list[Entry], list[tuple[int, int]]]:
    """Return rows and gaps as one run without overlaps, and the sequences that neither covers.

    Args:
        after: where the run starts, not included.
        through: where it ends; a gap may reach further.
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
    """Return what of a run lies at or below a sequence; a gap that reaches beyond it is cut.

    Args:
        entries: in ascending order.
        end: the sequence. None: all of it.
    """
    if end is None or not entries or entries[-1].sequence <= end:
        return list(entries)
    kept = [one for one in entries if one.sequence <= end]
    following = entries[len(kept)]
    if isinstance(following, Gap) and following.first <= end:
        kept.append(replace(following, last=end))
    return kept


def _by_first(entries: Sequence[Entry]) -> list[tuple[int, Entry]]:
    return [(e.first if isinstance(e, Gap) else e.sequence, e) for e in entries]
