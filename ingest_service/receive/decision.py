"""Decisions on a group of messages: the changes to commit, and the outcome of each message.

Pure: the caller reads the watermarks and writes the changes in one transaction.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest_service.receive import rows, sequence
from ingest_service.receive.conflicts import Conflict, ConflictDetector
from ingest_service.receive.group import MessageOutcome, Prepared, Rejection
from ingest_service.receive.sequence import Claims, Placement
from ingest_service.store.protocol import Changes, SpoolKey, Watermark
from servicekit.errors import SightlineError

CONFLICT = "SEQUENCE_CONFLICT"
"""Reason of the error for a sequence that was committed with another content."""
MAX_JSON_ORIGINALS = 1000
"""Rejected predictions of a group that are stored as JSON, which takes about 0.1 ms each.

The others are stored as bytes, so that a faulty device does not delay other devices.
"""


def decide(
    group: Prepared, watermarks: Mapping[SpoolKey, Watermark]
) -> tuple[Changes, tuple[MessageOutcome, ...]]:
    """Return the changes of a group, and the outcome of each message once they are committed.

    Args:
        group: the messages.
        watermarks: the watermark of every spool of the group.
    """
    decision = _decide(group, watermarks)
    return _changes(group, decision, watermarks), _outcomes(group, decision)


@dataclass(frozen=True, slots=True)
class _Decision:
    """The new parts of a group."""

    placement: Placement
    good: NDArray[np.bool_]
    """Mask of the predictions that are new and break no rule."""
    bad: Sequence[int]
    """Indexes of the predictions that are new and break a rule."""
    gaps: Sequence[tuple[int, rows.GapRow]]
    """The new parts of gaps, each with the index of its message."""
    duplicates: NDArray[np.int64]
    """Per message: the number of predictions that had been committed before."""
    watermarks: Mapping[SpoolKey, Watermark]
    """The new watermark of each spool with an accepted message."""
    conflicts: Mapping[int, Conflict]
    """Messages that claim a committed sequence with another content, by index."""


def _decide(group: Prepared, watermarks: Mapping[SpoolKey, Watermark]) -> _Decision:
    positions = {spool: watermark.through for spool, watermark in watermarks.items()}
    claims, streams = group.claims, [message.stream for message in group.messages]
    runs = sequence.join_runs(claims)
    detector = ConflictDetector(group, runs, watermarks)
    placement = sequence.place(runs, group.spools, streams, group.refused, positions, detector)
    new = sequence.new_rows(placement, claims)
    bad = [row for row in group.violations if new[row]]
    new[bad] = False
    again = sequence.duplicate_rows(placement, claims)
    touched = set(itertools.compress(group.spools, placement.taken))
    return _Decision(
        placement,
        new,
        sorted(bad),
        list(_new_gaps(group, placement)),
        _per_message(again, claims),
        {
            spool: detector.watermark(spool, positions[spool])
            for spool in positions
            if spool in touched
        },
        detector.conflicts,
    )


def _new_gaps(group: Prepared, placement: Placement) -> Iterator[tuple[int, rows.GapRow]]:
    part = sequence.new_gaps(placement, group.claims)
    if not len(part.gap):
        return
    chosen = group.gaps.take(pa.array(part.gap))
    columns = (
        group.claims.gap_message[part.gap].tolist(),
        part.first.tolist(),
        part.last.tolist(),
        chosen.field("reason").to_pylist(),
        chosen.field("declared_at").view(pa.int64()).to_pylist(),
    )
    for message, first, last, reason, declared in zip(*columns, strict=True):
        spool = group.messages[message].opening.spool
        yield message, rows.GapRow(spool, first, last, reason, declared)


def _changes(
    group: Prepared, decision: _Decision, watermarks: Mapping[SpoolKey, Watermark]
) -> Changes:
    taken = decision.placement.taken
    openings = [message.opening for message in group.messages]
    opened = [m.opening for m, take in zip(group.messages, taken, strict=True) if m.first and take]
    duplicates = dict.fromkeys(decision.watermarks, 0)
    for message in np.flatnonzero(decision.duplicates):
        duplicates[openings[message].spool] += int(decision.duplicates[message])
    predictions, owner = group.predictions, group.claims.message
    if not decision.good.all():
        predictions, owner = predictions.filter(decision.good), owner[decision.good]
    return Changes(
        rows.prediction_table(predictions, owner, openings),
        rows.rejected_table(_rejected_rows(group, decision.bad)),
        rows.gap_table(gap for _, gap in decision.gaps),
        rows.stream_table(opened),
        rows.watermark_table(watermarks, decision.watermarks, duplicates),
    )


def _rejected_rows(group: Prepared, bad: Sequence[int]) -> Iterator[rows.RejectedRow]:
    claims, left = group.claims, MAX_JSON_ORIGINALS
    for index, run in itertools.groupby(bad, lambda row: int(claims.message[row])):
        message, of_message = group.messages[index], list(run)
        first = int(np.searchsorted(claims.message, index))
        originals = rows.originals(message.payload, [row - first for row in of_message], left)
        left -= len(of_message)
        for row, original in zip(of_message, originals, strict=True):
            yield rows.RejectedRow(
                message.opening.spool,
                int(claims.sequence[row]),
                *group.violations[row],
                original,
            )


def _outcomes(group: Prepared, decision: _Decision) -> tuple[MessageOutcome, ...]:
    claims = group.claims
    accepted = _per_message(decision.good, claims)
    rejections: dict[int, list[Rejection]] = {}
    for row in decision.bad:
        rejection = Rejection(int(claims.sequence[row]), *group.violations[row])
        rejections.setdefault(int(claims.message[row]), []).append(rejection)
    gap_sequences: dict[int, int] = {}
    for message, gap in decision.gaps:
        length = gap.last_sequence - gap.first_sequence + 1
        gap_sequences[message] = gap_sequences.get(message, 0) + length
    return tuple(
        MessageOutcome(
            int(decision.placement.high[message]),
            int(accepted[message]),
            int(decision.duplicates[message]),
            tuple(rejections.get(message, ())),
            gap_sequences.get(message, 0),
            _error(message, group, decision),
        )
        for message in range(claims.messages)
    )


def _error(message: int, group: Prepared, decision: _Decision) -> SightlineError | None:
    if message in decision.placement.holes:
        return hole_error(decision.placement.holes[message])
    if message in decision.conflicts:
        return conflict_error(decision.conflicts[message])
    return group.refused.get(message)


def hole_error(expected: int) -> SightlineError:
    """Return the error for a message after which sequence `expected` is missing."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "SEQUENCE_HOLE",
        f"sequence {expected} is missing: send it, or declare it as a gap, before any later one",
        metadata={"expected_sequence": str(expected)},
    )


def conflict_error(conflict: Conflict) -> SightlineError:
    """Return the error for a message that claims a committed sequence with another content."""
    cause = (
        "was committed with another content"
        if conflict.kind == "content"
        else "belongs to another opening of this spool, which continued it before this one"
    )
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        CONFLICT,
        f"sequence {conflict.sequence} {cause}: another process has used this spool_id; predictions"
        " that are not committed yet need a new spool_id",
        metadata={"sequence": str(conflict.sequence), "kind": conflict.kind},
    )


def _per_message(rows_: NDArray[np.bool_], claims: Claims) -> NDArray[np.int64]:
    """Return the number of these predictions in each message."""
    return np.bincount(claims.message[rows_], minlength=claims.messages)
