"""What the rows of a spool file mean."""

import heapq
import zlib
from collections.abc import Sequence
from dataclasses import replace

from edge.log.encode import sequence_field
from edge.log.entries import Entry, Gap, Row


def checksum(prediction: bytes) -> int:
    """Returns what is kept beside a prediction, to notice when its bytes change."""
    return zlib.crc32(prediction)


def is_intact(sequence: int, check: object, prediction: object) -> bool:
    """Says whether a row is what was written."""
    return (
        isinstance(prediction, bytes)
        and zlib.crc32(prediction) == check
        and prediction.startswith(sequence_field(sequence))
    )


def renumbered(prediction: bytes, old: int, new: int) -> bytes:
    """Returns a prediction under another sequence."""
    return sequence_field(new) + prediction[len(sequence_field(old)) :]


def merge(
    after: int, through: int, rows: Sequence[Row], gaps: Sequence[Gap]
) -> tuple[list[Entry], list[tuple[int, int]]]:
    """Returns rows and gaps as one run without overlaps, and the sequences that neither covers.

    Args:
        after: where the run starts, not included.
        through: where it ends; a gap may reach further.
        rows: in ascending order.
        gaps: in ascending order.
    """
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


def _by_first(entries: Sequence[Entry]) -> list[tuple[int, Entry]]:
    return [(e.first if isinstance(e, Gap) else e.sequence, e) for e in entries]
