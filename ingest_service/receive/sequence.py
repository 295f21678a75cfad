"""Deduplication: which sequences of a group of messages are new, seen before, or out of place.

Pure: arrays of sequences and the watermarks go in, decisions come out. A message claims the
sequences of its predictions and its gaps. What is at or below the watermark of its spool has been
committed before; the rest must continue the watermark without a hole.
"""

from collections.abc import Collection, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest_service.store.protocol import SpoolKey

Int64s = NDArray[np.int64]


class Disorder(NamedTuple):
    """What is wrong with the sequences of one message, whatever the watermark."""

    field: str
    """Path of the field, such as `predictions[2].sequence`."""
    rule: str
    """The rule, to be read after the field's name."""


@dataclass(frozen=True, slots=True)
class Claims:
    """The sequences that a group of messages claims; messages are numbered from 0 in order."""

    messages: int
    """How many messages there are."""
    sequence: Int64s
    """Of every prediction, in the order of messages and, in a message, of its list."""
    message: Int64s
    """The message of every prediction."""
    gap_first: Int64s
    gap_last: Int64s
    gap_message: Int64s
    """First and last sequence and message of every gap, in the same order."""


@dataclass(frozen=True, slots=True)
class Runs:
    """What each message claims: runs of sequences, and whether they join to one.

    `first` and `last` (of a run) are sorted by message, then by `first`; the runs of message m are
    those from `start[m]` to before `start[m + 1]`.
    """

    first: Int64s
    last: Int64s
    start: Int64s
    joined: NDArray[np.bool_]
    """Per message: no sequence is missing between its runs."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the messages stand: of message m, what lies above `low[m]` and up to `high[m]` is new.

    What lies at or below `low[m]` is a duplicate. A message that is not `taken` counts for nothing.
    """

    low: Int64s
    high: Int64s
    taken: NDArray[np.bool_]
    holes: dict[int, int] = field(default_factory=dict)
    """Messages after which a sequence is missing, and that sequence; their streams end there."""
    refuted: set[int] = field(default_factory=set)
    """Messages that claim what was committed with another content; their streams end there."""


class GapParts(NamedTuple):
    """Parts of gaps."""

    gap: Int64s
    """Which gaps."""
    first: Int64s
    last: Int64s
    """First and last sequence of the part."""


class Judge(Protocol):
    """Return True if what comes again is what was committed."""

    def refutes(self, message: int, watermark: int) -> bool:
        """Say whether the message claims what was committed with another content."""
        ...

    def moved(self, message: int, low: int, high: int) -> None:
        """Take note that what the message claims above `low` and up to `high` is new."""
        ...


def find_disorder(claims: Claims) -> dict[int, Disorder]:
    """Return what is wrong in each message whose sequences are not in order.

    Sequences start at 1; predictions ascend, gaps ascend, and none overlaps another.
    """
    found: dict[int, Disorder] = {}
    own = _starts(claims.message, claims.messages)
    gaps_own = _starts(claims.gap_message, claims.messages)
    low, follows = claims.sequence < 1, _same(claims.message)
    late = follows & (claims.sequence[1:] <= claims.sequence[:-1])
    for rows, name, rule in (
        (np.flatnonzero(low), "sequence", "must be at least 1"),
        (np.flatnonzero(late) + 1, "sequence", "must be greater than the one before it"),
    ):
        _note(found, rows, claims.message, own, f"predictions[%d].{name}", rule)
    gap_late = _same(claims.gap_message) & (claims.gap_first[1:] <= claims.gap_last[:-1])
    inside_out = claims.gap_last < claims.gap_first
    for rows, name, rule in (
        (np.flatnonzero(claims.gap_first < 1), "first_sequence", "must be at least 1"),
        (np.flatnonzero(inside_out), "last_sequence", "must not be less than first_sequence"),
        (np.flatnonzero(gap_late) + 1, "first_sequence", "must lie after the gap before it"),
    ):
        _note(found, rows, claims.gap_message, gaps_own, f"gaps[%d].{name}", rule)
    _note_overlaps(found, claims)
    return found


def join_runs(claims: Claims) -> Runs:
    """Return the runs of sequences that each message claims. Meaningful where it is in order."""
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
    judge: Judge | None = None,
) -> Placement:
    """Decides, message by message, what is new, and moves the watermarks on.

    Args:
        runs: what the messages claim.
        spools: the spool of each message.
        streams: the stream of each message.
        refused: messages that are not to be taken; their streams end there.
        watermarks: the committed position of every spool; moved in place.
        judge: asked for each message, in order. None: every resend is what was committed.
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
        if judge is not None and judge.refutes(message, watermark):
            placement.refuted.add(message)
            ended.add(stream)
            continue
        low[message] = watermark
        high[message], missing = _reach(runs, message, watermark)
        placement.taken[message] = True
        if judge is not None and high[message] > watermark:
            judge.moved(message, watermark, int(high[message]))
        watermarks[spool] = int(high[message])
        if missing:
            placement.holes[message] = int(high[message]) + 1
            ended.add(stream)
    return placement


def new_rows(placement: Placement, claims: Claims) -> NDArray[np.bool_]:
    """Return which predictions are new."""
    low, high = placement.low[claims.message], placement.high[claims.message]
    return (claims.sequence > low) & (claims.sequence <= high)


def duplicate_rows(placement: Placement, claims: Claims) -> NDArray[np.bool_]:
    """Return which predictions have been committed before."""
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
    """Return up to where the message continues the watermark, and whether one is missing then."""
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
    """Returns, for each item but the first, whether it is of the same message as the one before."""
    return np.asarray(message[1:] == message[:-1])


def _starts(message: Int64s, messages: int) -> Int64s:
    """Return where the items of each message begin, and where the last one's end."""
    return np.searchsorted(message, np.arange(messages + 1)).astype(np.int64)


def _note(
    found: MutableMapping[int, Disorder],
    rows: Int64s,
    message: Int64s,
    starts: Int64s,
    path: str,
    rule: str,
) -> None:
    """Note a broken rule for each message that has none yet; `path` takes the row's index."""
    for row in rows:
        owner = int(message[row])
        if owner not in found:
            found[owner] = Disorder(path % (row - starts[owner]), rule)


def _note_overlaps(found: MutableMapping[int, Disorder], claims: Claims) -> None:
    """Note the messages in which a gap covers a prediction."""
    if not len(claims.gap_message):
        return
    runs = join_runs(claims)
    owners = np.repeat(np.arange(claims.messages), np.diff(runs.start))
    overlap = _same(owners) & (runs.first[1:] <= runs.last[:-1])
    for row in np.flatnonzero(overlap) + 1:
        rule = f"must not cover a prediction of the same message (sequence {runs.first[row]})"
        found.setdefault(int(owners[row]), Disorder("gaps", rule))
