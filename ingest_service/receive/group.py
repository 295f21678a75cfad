"""Groups of messages that are committed together: decoding and checks without watermarks.

Pure. Decisions that depend on the watermarks follow in `decision`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest_service.receive import capture_window, sequence
from ingest_service.receive.checks import find_violations
from ingest_service.receive.decode import Decoder
from ingest_service.receive.rules import Violation
from ingest_service.receive.sequence import Claims
from ingest_service.receive.undated import labelled, redated, undated
from ingest_service.store.protocol import SpoolKey, StreamOpening
from servicekit.errors import SightlineError, invalid

_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The range of a `google.protobuf.Timestamp`: the years 1 to 9999, us since 1970."""


class Message(NamedTuple):
    """One message of a stream."""

    stream: int
    """Number of the stream, unique in the process."""
    opening: StreamOpening
    payload: bytes
    first: bool
    """True for the first message of the stream."""


class Rejection(NamedTuple):
    """A prediction that is kept as rejected."""

    sequence: int
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class MessageOutcome:
    """The outcome of one message."""

    committed_through: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejections: tuple[Rejection, ...] = ()
    gap_sequences: int = 0
    error: SightlineError | None = None
    """The error that ends the stream after this message; sequences before a hole are committed."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A group of messages after decoding and checking."""

    messages: Sequence[Message]
    predictions: pa.StructArray
    gaps: pa.StructArray
    claims: Claims
    refused: Mapping[int, SightlineError]
    """Errors of messages to refuse independent of the watermarks, by index."""
    violations: Mapping[int, Violation]
    """Broken rules by row of `predictions`."""

    @property
    def spools(self) -> list[SpoolKey]:
        """The spool of each message."""
        return [message.opening.spool for message in self.messages]


def prepare(
    messages: Sequence[Message],
    decoder: Decoder,
    now: datetime,
    steady: float | None = None,
    *,
    date_undated: bool = False,
) -> Prepared:
    """Decode and check the messages of a group.

    Args:
        messages: the messages in the order of their arrival.
        decoder: decodes their bytes.
        now: the server's wall clock, UTC.
        steady: the server's steady clock, s; None: not known.
        date_undated: give predictions without a plausible capture time the time `now`.
    """
    decoded = decoder.decode([message.payload for message in messages])
    predictions = decoded.batch.column("predictions")
    gaps = decoded.batch.column("gaps")
    claims = _claims(predictions, gaps)
    refused = dict(decoded.refused)
    _refuse_headers(refused, messages, decoded.batch.column("header"))
    for index, disorder in sequence.find_disorder(claims).items():
        refused.setdefault(index, invalid(*disorder))
    _refuse_gaps(refused, gaps)
    openings = {id(message.opening): message.opening for message in messages}
    windows = {
        key: capture_window.of_stream(opening, now, steady) for key, opening in openings.items()
    }
    window = capture_window.for_each([windows[id(m.opening)] for m in messages], claims.message)
    received = predictions.values
    rows = undated(received, window) if date_undated else np.zeros(len(received), np.bool_)
    dated = redated(received, rows, capture_window.to_us(now)) if rows.any() else received
    violations = find_violations(dated, window)
    stored = labelled(dated, rows, received) if rows.any() else received
    return Prepared(messages, stored, gaps.values, claims, refused, violations)


def _claims(predictions: pa.ListArray, gaps: pa.ListArray) -> Claims:
    return Claims(
        len(predictions),
        predictions.values.field("sequence").to_numpy(zero_copy_only=False),
        _owners(predictions),
        gaps.values.field("first_sequence").to_numpy(zero_copy_only=False),
        gaps.values.field("last_sequence").to_numpy(zero_copy_only=False),
        _owners(gaps),
    )


def _owners(lists: pa.ListArray) -> NDArray[np.int64]:
    """Return the row of each item of the lists."""
    return np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))


def _refuse_headers(
    refused: dict[int, SightlineError], messages: Sequence[Message], headers: pa.StructArray
) -> None:
    present = headers.is_valid().to_numpy(zero_copy_only=False)
    for index, message in enumerate(messages):
        if present[index] and not message.first:
            error = invalid("header", "must be absent after the first message of a stream")
            refused.setdefault(index, error)


def _refuse_gaps(refused: dict[int, SightlineError], gaps: pa.ListArray) -> None:
    if not len(gaps.values):
        return
    unsaid = gaps.values.field("reason").to_numpy() == 0
    declared = gaps.values.field("declared_at").view(pa.int64()).fill_null(0).to_numpy()
    offsets = gaps.offsets.to_numpy()
    for broken, name, rule in (
        (unsaid, "reason", "must be given"),
        (
            (declared < _FIRST_US) | (declared > _LAST_US),
            "declared_at",
            "must be from 0001-01-01 to 9999-12-31",
        ),
    ):
        for item in np.flatnonzero(broken):
            message = int(np.searchsorted(offsets, item, side="right") - 1)
            field = f"gaps[{item - offsets[message]}].{name}"
            refused.setdefault(message, invalid(field, rule))
