from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_service.receive.sequence import (
    Claims,
    Placement,
    duplicate_rows,
    find_disorder,
    join_runs,
    new_gaps,
    new_rows,
    place,
)
from ingest_service.store.protocol import SpoolKey
from tests.unit.ingest_service.samples import SPOOL, spool

LARGEST = 2**63 - 1
Claim = tuple[Sequence[int], Sequence[tuple[int, int]]]
"""Sequences of predictions, and first and last of gaps, of one message."""


def claims_of(*messages: Claim) -> Claims:
    def column(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    numbered = list(enumerate(messages))
    return Claims(
        len(messages),
        column([s for _, (sequences, _) in numbered for s in sequences]),
        column([m for m, (sequences, _) in numbered for _ in sequences]),
        column([first for _, (_, gaps) in numbered for first, _ in gaps]),
        column([last for _, (_, gaps) in numbered for _, last in gaps]),
        column([m for m, (_, gaps) in numbered for _ in gaps]),
    )


@dataclass
class SequenceLog:
    """The rows, gaps and outcomes of one spool."""

    watermark: int = 0
    rows: list[int] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    duplicates: int = 0
    holes: list[int] = field(default_factory=list)

    def take(self, *messages: Claim, streams: Sequence[int] | None = None) -> Placement:
        """Commit a group of messages of one spool, each on a stream of its own by default."""
        claims = claims_of(*messages)
        positions = {SPOOL: self.watermark}
        placement = place(
            join_runs(claims),
            [SPOOL] * len(messages),
            streams or range(len(messages)),
            find_disorder(claims),
            positions,
        )
        self.watermark = positions[SPOOL]
        self.rows += claims.sequence[new_rows(placement, claims)].tolist()
        parts = new_gaps(placement, claims)
        self.gaps += list(zip(parts.first.tolist(), parts.last.tolist(), strict=True))
        self.duplicates += int(duplicate_rows(placement, claims).sum())
        self.holes += placement.holes.values()
        return placement

    def landed(self) -> list[int]:
        covered = [s for first, last in self.gaps for s in range(first, last + 1)]
        return sorted(self.rows + covered)


@pytest.mark.parametrize(
    ("claim", "watermark", "rows", "gaps"),
    [
        (([1, 2, 3], []), 3, [1, 2, 3], []),
        (([], [(1, 4)]), 4, [], [(1, 4)]),
        (([2, 4], [(1, 1), (3, 3)]), 4, [2, 4], [(1, 1), (3, 3)]),
        (([1, 5], [(2, 4)]), 5, [1, 5], [(2, 4)]),
        (([], []), 0, [], []),
        (([], [(1, LARGEST)]), LARGEST, [], [(1, LARGEST)]),
    ],
)
def test_what_continues_an_empty_spool_is_new(
    claim: Claim, watermark: int, rows: list[int], gaps: list[tuple[int, int]]
) -> None:
    log = SequenceLog()
    log.take(claim)
    assert (log.watermark, log.rows, log.gaps) == (watermark, rows, gaps)
    assert not log.holes


def test_what_was_committed_is_a_duplicate() -> None:
    log = SequenceLog(watermark=5)
    log.take(([4, 5], []))
    assert (log.watermark, log.rows, log.duplicates, log.holes) == (5, [], 2, [])


def test_an_overlap_with_the_watermark_is_cut() -> None:
    log = SequenceLog(watermark=5)
    log.take(([4, 5, 6, 7], []), ([], [(3, 9)]))
    assert (log.rows, log.gaps, log.duplicates) == ([6, 7], [(8, 9)], 2)
    assert log.watermark == 9


def test_a_gap_that_was_committed_is_not_recorded_again() -> None:
    log = SequenceLog()
    log.take(([], [(1, LARGEST)]))
    log.take(([], [(1, LARGEST)]), ([], [(7, 8)]))
    assert log.gaps == [(1, LARGEST)]


def test_a_hole_before_the_message_names_the_sequence_that_is_expected() -> None:
    log = SequenceLog(watermark=5)
    log.take(([8, 9], []))
    assert (log.watermark, log.rows, log.holes) == (5, [], [6])


def test_what_comes_before_a_hole_in_a_message_lands() -> None:
    log = SequenceLog(watermark=3)
    log.take(([3, 4, 5, 7], [(8, 9)]))
    assert (log.watermark, log.rows, log.gaps, log.holes) == (5, [4, 5], [], [6])
    assert log.duplicates == 1


def test_a_hole_at_or_below_the_watermark_hides_nothing() -> None:
    log = SequenceLog(watermark=10)
    log.take(([2, 9, 11], []))
    assert (log.rows, log.duplicates, log.holes, log.watermark) == ([11], 2, [], 11)


def test_a_stream_ends_at_its_hole_and_others_go_on() -> None:
    log = SequenceLog()
    log.take(([2], []), ([1], []), ([1, 2], []), streams=[0, 0, 1])
    assert (log.rows, log.holes, log.watermark) == ([1, 2], [1], 2)


def test_two_streams_of_one_spool_are_taken_in_order() -> None:
    log = SequenceLog()
    log.take(([1, 2], []), ([1, 2, 3], []), ([3, 4], []))
    assert (log.rows, log.duplicates, log.watermark) == ([1, 2, 3, 4], 3, 4)


def test_spools_do_not_touch_each_other() -> None:
    claims = claims_of(([1, 2], []), ([1], []), ([3], []))
    positions: dict[SpoolKey, int] = {spool(1): 0, spool(2): 0}
    place(join_runs(claims), [spool(1), spool(2), spool(1)], [0, 1, 0], (), positions)
    assert positions == {spool(1): 3, spool(2): 1}


def test_the_largest_sequence_ends_a_spool_cleanly() -> None:
    log = SequenceLog(watermark=LARGEST - 2)
    log.take(([LARGEST - 1, LARGEST], []))
    log.take(([LARGEST], [(LARGEST - 1, LARGEST - 1)]))
    assert (log.rows, log.gaps) == ([LARGEST - 1, LARGEST], [])
    assert (log.duplicates, log.holes) == (1, [])


@pytest.mark.parametrize(
    ("claim", "path"),
    [
        (([0, 1], []), "predictions[0].sequence"),
        (([-(2**63)], []), "predictions[0].sequence"),
        (([1, 1], []), "predictions[1].sequence"),
        (([1, 3, 2], []), "predictions[2].sequence"),
        (([], [(0, 1)]), "gaps[0].first_sequence"),
        (([], [(1, 3), (6, 5)]), "gaps[1].last_sequence"),
        (([], [(1, 3), (3, 5)]), "gaps[1].first_sequence"),
        (([], [(5, 6), (1, 2)]), "gaps[1].first_sequence"),
        (([2], [(1, 3)]), "gaps"),
        (([1, 2], [(2, 2)]), "gaps"),
        (([5], [(1, LARGEST)]), "gaps"),
    ],
)
def test_sequences_out_of_order_are_refused_by_field(claim: Claim, path: str) -> None:
    good: Claim = ([1], [(2, 3)])
    disorders = find_disorder(claims_of(good, claim, good))
    assert {message: disorder.field for message, disorder in disorders.items()} == {1: path}
    log = SequenceLog()
    log.take(claim, ([1], []), streams=[0, 0])
    assert not log.landed(), "nothing of it, nor of its stream after it, may land"
    assert (log.watermark, log.duplicates) == (0, 0)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int | tuple[int, int]], list[list[tuple[int, int]]]]:
    """Draw a spool of predictions (a sequence) and gaps (a pair), and the groups to send.

    A group is a list of messages. Each is a slice of the spool that begins at or before the end of
    the previous one, because a node may resend from any earlier point.
    """
    parts: list[int | tuple[int, int]] = []
    sequence = 1
    for length in draw(st.lists(st.integers(0, 4), min_size=1, max_size=25)):
        parts.append(sequence if length == 0 else (sequence, sequence + length - 1))
        sequence += max(length, 1)
    groups: list[list[tuple[int, int]]] = []
    sent = 0
    while sent < len(parts):
        group = []
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, sent))
            end = draw(st.integers(start, min(len(parts), start + 8)))
            group.append((start, end))
            sent = max(sent, end)
        groups.append(group)
        if len(groups) > 30:
            groups.append([(0, len(parts))])
            sent = len(parts)
    return parts, groups


@settings(max_examples=150, deadline=None)
@given(histories())
def test_each_sequence_lands_once_however_it_is_resent(
    history: tuple[list[int | tuple[int, int]], list[list[tuple[int, int]]]],
) -> None:
    parts, groups = history
    log = SequenceLog()
    sent = 0
    for group in groups:
        messages: list[Claim] = []
        for start, end in group:
            slice_ = parts[start:end]
            alone = [part for part in slice_ if isinstance(part, int)]
            messages.append((alone, [part for part in slice_ if not isinstance(part, int)]))
            sent += len(alone)
        log.take(*messages)
    last = parts[-1] if isinstance(parts[-1], int) else parts[-1][1]
    assert log.watermark == last
    assert log.landed() == list(range(1, last + 1))
    assert log.rows == [part for part in parts if isinstance(part, int)]
    assert len(log.rows) + log.duplicates == sent
    assert not log.holes


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), max_size=6, unique=True).map(sorted), max_size=8))
def test_whatever_is_sent_lands_at_most_once_and_without_holes(sent: list[list[int]]) -> None:
    log = SequenceLog()
    for sequences in sent:
        before = log.watermark
        log.take((sequences, []))
        assert log.watermark >= before
        assert all(hole <= log.watermark + 1 for hole in log.holes)
    assert log.rows == list(range(1, log.watermark + 1))
