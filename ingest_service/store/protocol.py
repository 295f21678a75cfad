"""The protocol of a store, with its data types. Read it before you write or change a store.

The changes of a group of messages are written in the same transaction in which the watermarks were
read. Several writers may share a store if it detects conflicting transactions.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from ingest_service.store.figures import Confidences, FrameCounts, Hours, Series, Versions
from ingest_service.store.queried import LogTables
from ingest_service.store.record_types import RecordReader, StreamAccount
from ingest_service.store.retention_clock import ClockReading, ClockRecord

STORE_MOVED = "STORE_MOVED"
"""Error reason of a store whose files were deleted or replaced, which is permanent."""

_TIME = pa.timestamp("us", "UTC")

SHAPES = ("rotated_boxes", "keypoints", "masks")
"""Columns of the table `prediction_shapes`, null in predictions without any."""
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
        ("account", pa.string()),
    ]
)
"""`account` is a `StreamAccount` as JSON; null: not sent. Only the last one of a device is kept."""
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


class LedgerCheck(NamedTuple):
    """The result of a check of the ledger by device."""

    unbalanced_devices: int
    """Devices of which more or less is stored than was committed."""
    difference: int
    """Sequences by which they differ, without sign, all devices together."""


class SpoolKey(NamedTuple):
    """The key of a spool. Sequences are unique within a spool."""

    device_id: str
    spool_id: str


class Generation(NamedTuple):
    """A run of committed sequences that were spooled during one opening of their spool."""

    id: str
    """Empty: the device did not send it."""
    after: int
    """The run begins after this sequence and ends where the next run begins."""


class Watermark(NamedTuple):
    """The committed position of a spool. Default: nothing is committed."""

    through: int = 0
    """Every sequence up to this one is committed."""
    first_digest: bytes | None = None
    """Digest of the prediction with sequence 1. None: not known, or it is in a gap."""
    last_digest: bytes | None = None
    """Digest of the prediction with sequence `through`. None: as for `first_digest`."""
    generations: tuple[Generation, ...] = ()
    """Openings in which the sequences were spooled, oldest first, without a hole. Empty: `through`
    is 0."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of one group of messages, as Arrow tables.

    `predictions` has the columns of the table `predictions` except `received_at`, and of those in
    `SHAPES` the ones that a row has; the others have the schemas of this module.
    """

    predictions: pa.Table
    rejected: pa.Table
    gaps: pa.Table
    streams: pa.Table
    watermarks: pa.Table
    """Per spool: its new position, the duplicates to add to its count, digests, and generations as
    JSON (null: unchanged)."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of predictions; all its conditions must hold. Default: every prediction."""

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
    """Captured at or after this time."""
    end_time: datetime | None = None
    """Captured before this time."""


class Count(NamedTuple):
    """The number of predictions (for classes: detections) with one value of a key."""

    key: str
    total: int
    defects: int


class JudgedCount(NamedTuple):
    """Counts of the predictions under one value of a key: in total, defects, with a verdict."""

    key: str
    total: int
    defects: int
    with_verdict: int


@dataclass(frozen=True, slots=True)
class StatsDetails:
    """Counts that are read from the rows, of the predictions that match a filter."""

    with_verdict: int
    """Predictions with a verdict, defect or not."""
    verdicts: Mapping[str, Mapping[str, int]]
    """The same by `device_id`, `model_name` and `source`, and by its values."""
    by_cloud_reason: Sequence[JudgedCount]
    """Predictions of the cloud."""
    by_source_label: Sequence[JudgedCount]
    """Predictions with a label `source`."""


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
    """p50, p95 and p99; None: no prediction has an inference time."""
    first_captured_us: int | None
    """Microseconds since 1970; None: no prediction matches."""
    last_captured_us: int | None
    rejected: int
    gap_sequences: int
    details: StatsDetails | None = None
    """None: not asked for."""


class Position(NamedTuple):
    """The unique position of a prediction in the order of commits."""

    received_us: int
    device_id: str
    spool_id: str
    sequence: int


class News(NamedTuple):
    """The predictions after a position that match a filter, up to another position."""

    upto: Position
    """Everything up to it is counted. It is the end of a commit."""
    matching: int
    """Number of predictions that match."""
    newest: Sequence[Position]
    """Positions of the newest of them, oldest first."""
    more: bool
    """True if there are commits after `upto` already."""


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """A stored prediction; units and empty values are those of `prediction.proto`."""

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
    rotated_boxes: Sequence[Mapping[str, float] | None] | None = None
    """As `keypoints` and `masks`: one entry for each detection; None: no detection has any."""
    keypoints: Sequence[Sequence[Mapping[str, Any]]] | None = None
    masks: Sequence[Mapping[str, Any] | None] | None = None


@dataclass(frozen=True, slots=True)
class StreamOpening:
    """The opening of a stream: its spool, its client, and the clocks at that time."""

    spool: SpoolKey
    opened_at: datetime
    """By the server's clock, UTC."""
    device_time: datetime | None
    """By the device's clock, uncorrected; None: the device did not send it."""
    device_monotonic: timedelta | None
    client: str
    opened_steady: float | None = None
    """`opened_at` by the server's steady clock, s; None: not known."""
    generation: str = ""
    """Id of the opening of the spool in which the predictions were spooled; empty: not sent."""
    account: StreamAccount | None = None
    """None: not sent, or it breaks a rule."""

    @property
    def clock_offset_seconds(self) -> float | None:
        """Server clock minus device clock, s; None: the device did not send its clock."""
        if self.device_time is None:
            return None
        return (self.opened_at - self.device_time).total_seconds()


class Transaction(Protocol):
    """An open write transaction."""

    def watermarks(self, spools: Collection[SpoolKey]) -> dict[SpoolKey, Watermark]:
        """Return the watermark of each spool."""
        ...

    def write_bookkeeping(self, changes: Changes, received_at: datetime) -> None:
        """Write everything of a group except its predictions: few rows, in several statements.

        Args:
            changes: the changes of the group.
            received_at: the time of the commit by the server's clock, UTC; the store makes it
                later if an earlier commit has this time or a later one.
        """
        ...

    def write_predictions(self, predictions: pa.Table, received_at: datetime) -> None:
        """Write the predictions of a group.

        Args:
            predictions: `Changes.predictions`.
            received_at: as in `write_bookkeeping`.
        """
        ...


class Reader(RecordReader, Protocol):
    """A reader of the snapshot of its first query. Not thread-safe, except for `interrupt`."""

    def watermark(self, spool: SpoolKey) -> Watermark:
        """Return the watermark of a spool."""
        ...

    def stats(self, filter_: Filter, *, details: bool = False) -> Stats:
        """Return statistics, all of one snapshot.

        Args:
            filter_: the predictions to count.
            details: also count what no rollup has, by reading every row that matches.
        """
        ...

    def page(self, filter_: Filter, size: int, after: Position | None) -> list[StoredPrediction]:
        """Return at most `size` predictions, newest commit first.

        Args:
            filter_: conditions of the predictions.
            size: >= 1.
            after: last position of the page before; None: return the first page.
        """
        ...

    def head(self) -> Position:
        """Return the position of the end of the last commit."""
        ...

    def is_deleted_after(self, position: Position) -> bool:
        """Return True if retention may have deleted predictions after a position."""
        ...

    def news(self, filter_: Filter, after: Position, keep: int) -> News:
        """Return what was committed after a position.

        The answer covers whole commits. If there are many more than 250 000 predictions, it covers
        the oldest of them.

        Args:
            filter_: conditions of the predictions.
            after: a position, of a prediction or of the end of a commit.
            keep: maximum number of positions in the result, >= 0.
        """
        ...

    def at(self, positions: Sequence[Position]) -> list[StoredPrediction]:
        """Return the predictions at these positions, oldest first, without those that are deleted.

        Args:
            positions: at least one, oldest first.
        """
        ...

    def log_tables(self) -> LogTables:
        """Return the tables of the snapshot, for SQL queries of callers."""
        ...

    def series(self, filter_: Filter, bucket_us: int) -> Series:
        """Return counts by buckets of time, all of one snapshot.

        Args:
            filter_: the predictions to count.
            bucket_us: length of a bucket, us; buckets begin at its multiples since 1970. Buckets of
                whole hours are counted from sums, unless the filter has classes or a confidence.
        """
        ...

    def frame(self, filter_: Filter, columns: int, rows: int, *, at_most: int = ...) -> FrameCounts:
        """Return detections by the cell of a grid that the centre of their box is in.

        A centre outside of the image counts in the nearest cell.

        Args:
            filter_: the predictions to read, row by row.
            columns: number of columns of the grid, >= 1.
            rows: number of rows of the grid, >= 1.
            at_most: approximate number of predictions above which a sample is read, which is the
                same for the same rows.
        """
        ...

    def confidences(self, filter_: Filter, reference: Hours) -> Confidences:
        """Return detections by confidence, now and in a reference, from sums.

        Args:
            filter_: the predictions of now; its times are whole hours, its classes choose those of
                the result and no predictions, and it has no confidence.
            reference: the hours to compare with.
        """
        ...

    def model_versions(self, filter_: Filter) -> Versions:
        """Return what each version of a model has answered, newest capture first.

        It comes from sums, unless the filter has classes or a confidence.
        """
        ...

    def interrupt(self) -> None:
        """Make the current query and each later one fail soon. Safe from any thread."""
        ...

    def close(self) -> None:
        """Release the resources of the reader."""
        ...


class Maintenance(Protocol):
    """Maintenance of a store while it is in use. Not thread-safe, except for `interrupt`.

    Every method raises SightlineError, and `export` also OSError. The next call resumes the work of
    one that failed.
    """

    def update_rollups(self, now: datetime, *, everything: bool = False) -> None:
        """Sum up new commits, for statistics, retention and export.

        Args:
            now: the current time, UTC.
            everything: True: include the newest commits, which otherwise wait for a full block.
        """
        ...

    def expire(self, before: datetime, *, exported_only: bool) -> int:
        """Delete what was committed before a time, in small transactions.

        Positions, gaps and the bookkeeping of each spool stay. Only commits that `update_rollups`
        has summed up are deleted.

        Args:
            before: UTC.
            exported_only: True: keep predictions that are not exported.

        Returns:
            The number of deleted predictions.
        """
        ...

    def expirable(self, before: datetime, *, exported_only: bool) -> int:
        """Return how many predictions `expire` with these arguments would delete."""
        ...

    def read_clock(self, judge: Callable[[ClockRecord | None], ClockReading]) -> ClockReading:
        """Pass the clock's record to `judge`, store the new record, and return the result."""
        ...

    def check_ledger(self) -> LedgerCheck:
        """Compare what is stored of each device with its committed sequences, by the sums.

        It reads the rows of predictions that have no sums yet, and no older ones.
        """
        ...

    def export(self, folder: Path, now: datetime) -> int:
        """Write predictions that were not exported yet to Parquet files, each to exactly one.

        Args:
            folder: the target, created if it is missing.
            now: the current time, UTC.

        Returns:
            The number of written files.
        """
        ...

    def interrupt(self) -> None:
        """Make the current step and each later one fail soon. Safe from any thread."""
        ...


class PredictionStore(Protocol):
    """A store of predictions. Every method raises SightlineError and no other exception."""

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
        """Commit a change and undo it, to check that the store can be written."""
        ...

    def check(self) -> None:
        """Raise SightlineError, `STORE_MOVED`, if the open files were moved or replaced. Cheap."""
        ...

    def close(self) -> None:
        """Finish all writes and close the store."""
        ...
