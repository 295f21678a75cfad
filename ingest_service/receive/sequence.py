"""Deduplication: which sequences of a group of messages are new, duplicate or out of order.

Pure: it maps arrays of sequences and watermarks to decisions. A message claims the sequences of its
predictions and its gaps. Sequences at or below the watermark of its spool have been committed
before; the others must continue the watermark without a hole.
"""

from collections.abc import Collection, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest_service.store.protocol import SpoolKey

Int64s = NDArray[np.int64]


class Disorder(NamedTuple):
    """A broken rule of the sequences of one message, independent of the watermark."""

    field: str
    """Path of the field, such as `predictions[2].sequence`."""
    rule: str
    """The rule, worded to follow the field's name."""


@dataclass(frozen=True, slots=True)
class Claims:
    """The sequences that a group of messages claims; messages are numbered from 0 in order."""

    messages: int
    """The number of messages."""
    sequence: Int64s
    """The sequence of every prediction, in the order of messages and of their lists."""
    message: Int64s
    """The message of every prediction."""
    gap_first: Int64s
    gap_last: Int64s
    gap_message: Int64s
    """First and last sequence and message of every gap, in the same order."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The sequences that each message claims, as runs.

    `first` and `last` (of a run) are sorted by message, then by `first`; the runs of message m are
    those from `start[m]` to before `start[m + 1]`.
    """

    first: Int64s
    last: Int64s
    start: Int64s
    joined: NDArray[np.bool_]
    """Per message: True if no sequence is missing between its runs."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The new sequences of each message m: those above `low[m]` and up to `high[m]`.

    Those at or below `low[m]` are duplicates. A message that is not `taken` is ignored.
    """

    low: Int64s
    high: Int64s
    taken: NDArray[np.bool_]
    holes: dict[int, int] = field(default_factory=dict)
    """The missing sequence after a message, by index of the message; its stream ends there."""
    conflicting: set[int] = field(default_factory=set)
    """Messages that claim a committed sequence with another content; their streams end there."""


class GapParts(NamedTuple):
    """Parts of gaps."""

    gap: Int64s
    """Indexes of the gaps."""
    first: Int64s
    last: Int64s
    """First and last sequence of the part."""


class ConflictCheck(Protocol):
    """A check that sequences which are sent again have their committed content."""

    def has_conflict(self, message: int, watermark: int) -> bool:
        """Return True if the message claims a committed sequence with another content."""
        ...

    def record_new(self, message: int, low: int, high: int) -> None:
        """Record that the sequences after `low` and up to `high` of the message are new."""
        ...


def find_disorder(claims: Claims) -> dict[int, Disorder]:
    """Return the first broken rule of each message whose sequences are not in order.

    Sequences start at 1; predictions ascend, gaps ascend, and none overlaps another.
    """
    disorders: dict[int, Disorder] = {}
    own = _starts(claims.message, claims.messages)
    gaps_own = _starts(claims.gap_message, claims.messages)
    low, follows = claims.sequence < 1, _same(claims.message)
    late = follows & (claims.sequence[1:] <= claims.sequence[:-1])
    for rows, name, rule in (
        (np.flatnonzero(low), "sequence", "must be at least 1"),
        (np.flatnonzero(late) + 1, "sequence", "must be greater than the one before it"),
    ):
        _add_disorders(disorders, rows, claims.message, own, f"predictions[%d].{name}", rule)
    gap_late = _same(claims.gap_message) & (claims.gap_first[1:] <= claims.gap_last[:-1])
    inside_out = claims.gap_last < claims.gap_first
    for rows, name, rule in (
        (np.flatnonzero(claims.gap_first < 1), "first_sequence", "must be at least 1"),
        (np.flatnonzero(inside_out), "last_sequence", "must not be less than first_sequence"),
        (np.flatnonzero(gap_late) + 1, "first_sequence", "must lie after the gap before it"),
    ):
        _add_disorders(disorders, rows, claims.gap_message, gaps_own, f"gaps[%d].{name}", rule)
    _add_overlaps(disorders, claims)
    return disorders


def join_runs(claims: Claims) -> Runs:
    """Return the runs of sequences that each message claims; valid for messages in order."""
    message, first, last = claims.message, claims.sequence, claims.sequence
    if len(claims.gap_message):
        message = np.concatenate([message, claims.gap_message])
        first = np.concatenate([first, claims.gap_first])
        last = np.concatenate([last, claims.gap_last])
        order = np.lexsort((first, message))
        message, first, last = message[order], first[order], last[order]
    joined = np.ones(claims.messages, dtype=np.bool_)
    joined[message[1:][_same(message) & (first[1:] - last[:-1] > 1)]] = False
    return Runs(first, last, _starts(message, claims.messages), joined)


def place(
    runs: Runs,
    spools: Sequence[SpoolKey],
    streams: Sequence[int],
    refused: Collection[int],
    watermarks: MutableMapping[SpoolKey, int],
    check: ConflictCheck | None = None,
) -> Placement:
    """Decide in order which sequences of each message are new, and advance the watermarks.

    Args:
        runs: the sequences that the messages claim.
        spools: the spool of each message.
        streams: the stream of each message.
        refused: indexes of messages to skip; their streams end there.
        watermarks: the committed position of every spool, updated in place.
        check: called for each message, in order. None: resends are not compared.
    """
    count = len(spools)
    low, high = np.zeros((2, count), dtype=np.int64)
    placement = Placement(low, high, np.zeros(count, dtype=np.bool_))
    ended: set[int] = set()
    for message, (spool, stream) in enumerate(zip(spools, streams, strict=True)):
        if stream in ended:
            continue
        if message in refused:
            ended.add(stream)
            continue
        watermark = watermarks[spool]
        if check is not None and check.has_conflict(message, watermark):
            placement.conflicting.add(message)
            ended.add(stream)
            continue
        low[message] = watermark
        high[message], missing = _reach(runs, message, watermark)
        placement.taken[message] = True
        if check is not None and high[message] > watermark:
            check.record_new(message, watermark, int(high[message]))
        watermarks[spool] = int(high[message])
        if missing:
            placement.holes[message] = int(high[message]) + 1
            ended.add(stream)
    return placement


def new_rows(placement: Placement, claims: Claims) -> NDArray[np.bool_]:
    """Return a mask of the new predictions."""
    low, high = placement.low[claims.message], placement.high[claims.message]
    return (claims.sequence > low) & (claims.sequence <= high)


def duplicate_rows(placement: Placement, claims: Claims) -> NDArray[np.bool_]:
    """Return a mask of the predictions that had been committed before."""
    low, taken = placement.low[claims.message], placement.taken[claims.message]
    return taken & (claims.sequence <= low)


def new_gaps(placement: Placement, claims: Claims) -> GapParts:
    """Return the new part of every gap that has one."""
    low, high = placement.low[claims.gap_message], placement.high[claims.gap_message]
    taken = placement.taken[claims.gap_message]
    index = np.flatnonzero(taken & (claims.gap_last > low) & (claims.gap_first <= high))
    return GapParts(
        index,
        np.maximum(claims.gap_first[index], low[index] + 1),
        np.minimum(claims.gap_last[index], high[index]),
    )


def _reach(runs: Runs, message: int, watermark: int) -> tuple[int, bool]:
    """Return how far the message continues the watermark, and True if a hole follows."""
    start, end = int(runs.start[message]), int(runs.start[message + 1])
    if start == end or runs.last[end - 1] <= watermark:
        return watermark, False
    if runs.joined[message] and runs.first[start] <= watermark + 1:
        return int(runs.last[end - 1]), False
    reached = watermark
    for run in range(start, end):
        if runs.first[run] > reached + 1:
            return reached, True
        reached = max(reached, int(runs.last[run]))
    return reached, False


def _same(message: Int64s) -> NDArray[np.bool_]:
    """Return a mask for all items but the first: True if of the same message as the one before."""
    return np.asarray(message[1:] == message[:-1])


def _starts(message: Int64s, messages: int) -> Int64s:
    """Return the start of the items of each message, and the end of the last ones."""
    return np.searchsorted(message, np.arange(messages + 1)).astype(np.int64)


def _add_disorders(
    disorders: MutableMapping[int, Disorder],
    rows: Int64s,
    message: Int64s,
    starts: Int64s,
    path: str,
    rule: str,
) -> None:
    """Add a broken rule for each message that has none yet; `path` is formatted with the index."""
    for row in rows:
        owner = int(message[row])
        if owner not in disorders:
            disorders[owner] = Disorder(path % (row - starts[owner]), rule)


def _add_overlaps(disorders: MutableMapping[int, Disorder], claims: Claims) -> None:
    """Add the messages in which a gap covers a prediction."""
    if not len(claims.gap_message):
        return
    runs = join_runs(claims)
    owners = np.repeat(np.arange(claims.messages), np.diff(runs.start))
    overlap = _same(owners) & (runs.first[1:] <= runs.last[:-1])
    for row in np.flatnonzero(overlap) + 1:
        rule = f"must not cover a prediction of the same message (sequence {runs.first[row]})"
        disorders.setdefault(int(owners[row]), Disorder("gaps", rule))
