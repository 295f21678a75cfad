"""What the ingest service asks of a store, and the words it uses.

A store takes the changes of a group of messages in one transaction, in which the watermarks were
read too: several writers may share a store as long as its transactions notice one another.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from ingest_service.store.retention_clock import ClockReading, ClockRecord

STORE_MOVED = "STORE_MOVED"
"""Reason of the error of a store whose files were deleted or replaced: it does not pass."""

_TIME = pa.timestamp("us", "UTC")

GAPS = pa.schema(
    [
        ("device_id", pa.string()),
        ("spool_id", pa.string()),
        ("first_sequence", pa.int64()),
        ("last_sequence", pa.int64()),
        ("reason", pa.string()),
        ("declared_at", _TIME),
    ]
)
REJECTED = pa.schema(
    [
        ("device_id", pa.string()),
        ("spool_id", pa.string()),
        ("sequence", pa.int64()),
        ("field", pa.string()),
        ("reason", pa.string()),
        ("original", pa.string()),
    ]
)
STREAMS = pa.schema(
    [
        ("device_id", pa.string()),
        ("spool_id", pa.string()),
        ("opened_at", _TIME),
        ("device_time", _TIME),
        ("device_monotonic_seconds", pa.float64()),
        ("clock_offset_seconds", pa.float64()),
        ("client", pa.string()),
    ]
)
WATERMARKS = pa.schema(
    [
        ("device_id", pa.string()),
        ("spool_id", pa.string()),
        ("committed_through", pa.int64()),
        ("duplicates", pa.int64()),
        ("first_digest", pa.binary()),
        ("last_digest", pa.binary()),
        ("generations", pa.string()),
    ]
)


class SpoolKey(NamedTuple):
    """The spool of a device: what sequences count in."""

    device_id: str
    spool_id: str


class Generation(NamedTuple):
    """A run of committed sequences that were spooled in one opening of their spool."""

    id: str
    """Empty: the device did not say."""
    after: int
    """The run begins after this sequence, and ends where the next run begins."""


class Watermark(NamedTuple):
    """What is committed of a spool. Default: nothing."""

    through: int = 0
    """Every sequence up to this one is committed."""
    first_digest: bytes | None = None
    """Of the prediction with sequence 1. None: not known, or it lies in a gap."""
    last_digest: bytes | None = None
    """Of the prediction with sequence `through`; likewise."""
    generations: tuple[Generation, ...] = ()
    """In which openings it was spooled, oldest first, without a hole. Empty: `through` is 0."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What one group of messages changes, as Arrow tables.

    `predictions` has the columns of the table `predictions` but `received_at`; the others have
    the schemas of this module.
    """

    predictions: pa.Table
    rejected: pa.Table
    gaps: pa.Table
    streams: pa.Table
    watermarks: pa.Table
    """Per spool: its new position, the duplicates to add to its count, digests, and generations as
    JSON (null: those that it had)."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which predictions a query is about; all conditions hold. Default: every prediction."""

    device_ids: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    """Predictions with at least one detection of one of these classes."""
    defect_detected: bool | None = None
    source: str | None = None
    """`device` or `cloud`."""
    min_confidence: float | None = None
    """In [0, 1]: predictions with a detection (of one of class_names) at least this confident."""
    start_time: datetime | None = None
    """Captured at or after it."""
    end_time: datetime | None = None
    """Captured before it."""


class Count(NamedTuple):
    """How many predictions (for classes: detections) fall under one value of a key."""

    key: str
    total: int
    defects: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of the predictions that match a filter."""

    total_predictions: int
    defects_detected: int
    total_detections: int
    by_device: Sequence[Count]
    by_model: Sequence[Count]
    by_source: Sequence[Count]
    by_class: Sequence[Count]
    inference_seconds: tuple[float, float, float] | None
    """p50, p95 and p99; None: no prediction gives its inference time."""
    first_captured_us: int | None
    """Microseconds since 1970; None: no prediction matches."""
    last_captured_us: int | None
    rejected: int
    gap_sequences: int


class Position(NamedTuple):
    """Where a prediction stands in the order newest commit first; unique to it."""

    received_us: int
    device_id: str
    spool_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """A prediction as it is stored; units and empty values as in `prediction.proto`."""

    position: Position
    clock_offset_seconds: float | None
    image_id: str
    image_width: int
    image_height: int
    model_name: str
    model_version: str
    source: str
    cloud_reason: str | None
    captured_us: int
    inference_seconds: float | None
    detections: Sequence[Mapping[str, Any]]
    defect_detected: bool | None
    labels: Mapping[str, str]
    trace_id: str


@dataclass(frozen=True, slots=True)
class Opening:
    """Who opened a stream, and what the clocks said."""

    spool: SpoolKey
    opened_at: datetime
    """By the server's clock, UTC."""
    device_time: datetime | None
    """By the device's, uncorrected; None: it did not say."""
    device_monotonic: timedelta | None
    client: str
    opened_steady: float | None = None
    """`opened_at` by the server's steady clock, s; None: not known."""
    generation: str = ""
    """In which opening of the spool the stream's predictions were spooled; empty: not said."""

    @property
    def clock_offset_seconds(self) -> float | None:
        """Server clock minus device clock; None: the device did not send its own."""
        if self.device_time is None:
            return None
        return (self.opened_at - self.device_time).total_seconds()


class Transaction(Protocol):
    """A transaction that is open."""

    def watermarks(self, spools: Collection[SpoolKey]) -> dict[SpoolKey, Watermark]:
        """Return what is committed of each spool."""
        ...

    def write_bookkeeping(self, changes: Changes, received_at: datetime) -> None:
        """Write everything of a group but its predictions: a little, in many statements.

        Args:
            changes: what to add.
            received_at: when the server commits it, by its own clock, UTC; the store makes it
                later where an earlier commit has this time or a later one.
        """
        ...

    def write_predictions(self, predictions: pa.Table, received_at: datetime) -> None:
        """Write the predictions of a group.

        Args:
            predictions: of `Changes`.
            received_at: as in `write_bookkeeping`.
        """
        ...


class Reader(Protocol):
    """Reads a store as of its first query; used by one thread, save for `interrupt`."""

    def watermark(self, spool: SpoolKey) -> Watermark:
        """Return what is committed of a spool."""
        ...

    def stats(self, which: Filter) -> Stats:
        """Return statistics, all of one moment."""
        ...

    def page(self, which: Filter, size: int, after: Position | None) -> list[StoredPrediction]:
        """Return at most `size` predictions, newest commit first.

        Args:
            which: the filter.
            size: >= 1.
            after: the last position of the page before; None: the first page.
        """
        ...

    def interrupt(self) -> None:
        """Make the query that runs, and each later one, fail soon. From any thread."""
        ...

    def close(self) -> None:
        """Free what the reader holds."""
        ...


class Maintenance(Protocol):
    """Keeps a store in shape while it is read and written; used by one thread, save `interrupt`.

    Every method raises SightlineError, and `export` OSError too. What was begun then goes on with
    the next call.
    """

    def update_rollups(self, now: datetime, *, everything: bool = False) -> None:
        """Prepare what was committed for statistics, retention and export.

        Args:
            now: UTC.
            everything: whether to take the newest commits too, which may wait for more otherwise.
        """
        ...

    def expire(self, before: datetime, *, exported_only: bool) -> int:
        """Delete what was committed before a time, in small transactions.

        Positions, gaps and the bookkeeping of each spool stay. Only commits that `update_rollups`
        has summed up are deleted.

        Args:
            before: UTC.
            exported_only: whether to keep predictions that are not exported.

        Returns:
            How many predictions were deleted.
        """
        ...

    def expirable(self, before: datetime, *, exported_only: bool) -> int:
        """Return how many predictions `expire` with these arguments would delete."""
        ...

    def read_clock(self, judge: Callable[[ClockRecord | None], ClockReading]) -> ClockReading:
        """Pass the clock's record to `judge`, store the new record, and return the result."""
        ...

    def export(self, folder: Path, now: datetime) -> int:
        """Write what was never exported to Parquet files, each prediction to exactly one.

        Args:
            folder: made where it is missing.
            now: UTC.

        Returns:
            How many files were written.
        """
        ...

    def interrupt(self) -> None:
        """Make the step that runs, and each later one, fail soon. From any thread."""
        ...


class PredictionStore(Protocol):
    """Where predictions are kept. Every method raises SightlineError and no other exception."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Open a transaction: committed and durable when the block ends, undone if it raises."""
        ...

    def reader(self) -> Reader:
        """Return a new reader."""
        ...

    def maintenance(self) -> Maintenance:
        """Return the maintenance of the store; only one may be in use at a time."""
        ...

    def probe(self) -> None:
        """Commit something and take it back, to see whether it can."""
        ...

    def check(self) -> None:
        """Raise SightlineError, `STORE_MOVED`, if what was opened is no longer there. Cheap."""
        ...

    def close(self) -> None:
        """Write everything to its final place and close the store."""
        ...
