"""The times and the bounds of requests for figures. Pure."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1 import reads_pb2

from ingest_service.receive.headers import parse_time
from ingest_service.store.figures import Hours
from ingest_service.store.protocol import Filter
from ingest_service.translate import filter_from_proto
from servicekit.errors import invalid

HOUR = timedelta(hours=1)
DEFAULT_RANGE = timedelta(hours=24)
DEFAULT_REFERENCE = timedelta(days=7)
MIN_BUCKET, MAX_BUCKET = timedelta(minutes=1), timedelta(days=31)
MAX_BUCKETS = 1500
MAX_ROW_RANGE = timedelta(hours=25)
"""Maximum range of counts that are read from rows."""
MAX_FRAME_RANGE = timedelta(days=31)
MAX_CELLS = 64
"""Maximum number of columns and of rows of a grid."""
DEFAULT_COLUMNS, DEFAULT_ROWS = 32, 18
_ROW_FIELDS = "class_names or min_confidence"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SeriesSlots(NamedTuple):
    """The buckets of a series."""

    filter: Filter
    """With both times."""
    bucket: timedelta
    numbers: range
    """Numbers of the buckets since 1970."""


def series_slots(request: reads_pb2.GetSeriesRequest, now: datetime) -> SeriesSlots:
    """Return the buckets of a request.

    Raises:
        SightlineError: INVALID_ARGUMENT; a field is out of its bounds.
    """
    wanted, start, end = _with_times(filter_from_proto(request.filter), now)
    if start < _EPOCH:
        raise invalid("filter.start_time", f"must be 1970 or later, got {start:%Y-%m-%d}")
    bucket = _bucket(request)
    numbers = range((start - _EPOCH) // bucket, -((_EPOCH - end) // bucket))
    if end - start > MAX_BUCKETS * bucket:
        raise invalid(
            "bucket",
            f"must be longer, or the range shorter: the range has {(end - start) / bucket:.0f}"
            f" buckets, of at most {MAX_BUCKETS}",
        )
    if bucket < HOUR:
        _check_range(start, end, MAX_ROW_RANGE, "buckets below one hour are")
    if _reads_rows(wanted):
        _check_range(start, end, MAX_ROW_RANGE, f"predictions with {_ROW_FIELDS} are")
    return SeriesSlots(wanted, bucket, numbers)


def frame_filter(request: reads_pb2.GetFrameRequest, now: datetime) -> Filter:
    """Return the filter of a request, with both times.

    Raises:
        SightlineError: INVALID_ARGUMENT; a field is out of its bounds.
    """
    wanted, start, end = _with_times(filter_from_proto(request.filter), now)
    _check_range(start, end, MAX_FRAME_RANGE, "positions are")
    return wanted


def frame_cells(request: reads_pb2.GetFrameRequest) -> tuple[int, int]:
    """Return the number of columns and of rows of a grid.

    Raises:
        SightlineError: INVALID_ARGUMENT; one is out of its bounds.
    """
    for field, count in (("columns", request.columns), ("rows", request.rows)):
        if not 0 <= count <= MAX_CELLS:
            raise invalid(field, f"must be 0 to {MAX_CELLS}, got {count}")
    return request.columns or DEFAULT_COLUMNS, request.rows or DEFAULT_ROWS


def confidence_hours(
    request: reads_pb2.GetConfidenceRequest, now: datetime
) -> tuple[Filter, Hours, Hours]:
    """Return the filter of a request with both times, the hours of now, and the reference.

    Raises:
        SightlineError: INVALID_ARGUMENT; a field is out of its bounds.
    """
    wanted = filter_from_proto(request.filter)
    if wanted.min_confidence is not None:
        raise invalid("filter.min_confidence", "must be absent: all confidences are compared")
    wanted, start, end = _with_times(wanted, -((_EPOCH - now) // HOUR) * HOUR + _EPOCH)
    before = _given(request, "reference_end_time") or start
    first = _given(request, "reference_start_time") or _earlier(before, DEFAULT_REFERENCE)
    for field, time in (
        ("filter.start_time", start),
        ("filter.end_time", end),
        ("reference_start_time", first),
        ("reference_end_time", before),
    ):
        if (time - _EPOCH) % HOUR:
            raise invalid(field, f"must be a whole hour, got {time.isoformat()}")
    if before < first:
        raise invalid("reference_end_time", "must not be before reference_start_time")
    return wanted, Hours(start, end), Hours(first, before)


def versions_filter(request: reads_pb2.ListModelVersionsRequest, now: datetime) -> Filter:
    """Return the filter of a request.

    Raises:
        SightlineError: INVALID_ARGUMENT; a field is out of its bounds.
    """
    wanted = filter_from_proto(request.filter)
    if _reads_rows(wanted):
        if wanted.start_time is None:
            raise invalid("filter.start_time", f"must be given with {_ROW_FIELDS}")
        wanted, start, end = _with_times(wanted, now)
        _check_range(start, end, MAX_ROW_RANGE, f"predictions with {_ROW_FIELDS} are")
    return wanted


def _reads_rows(wanted: Filter) -> bool:
    return bool(wanted.class_names) or wanted.min_confidence is not None


def _check_range(start: datetime, end: datetime, longest: timedelta, what: str) -> None:
    if end - start > longest:
        hours = longest // HOUR
        raise invalid(
            "filter.start_time",
            f"must be at most {hours} hours before the end, because {what} read row by row;"
            f" got {(end - start) / HOUR:g} hours",
        )


def _with_times(wanted: Filter, default_end: datetime) -> tuple[Filter, datetime, datetime]:
    """Return the filter with both times, and these."""
    end = wanted.end_time or default_end
    start = wanted.start_time or _earlier(end, DEFAULT_RANGE)
    if end < start:
        raise invalid("filter.start_time", f"must not be after the end, {end.isoformat()}")
    return replace(wanted, start_time=start, end_time=end), start, end


def _earlier(time: datetime, by: timedelta) -> datetime:
    """Return an earlier time, the earliest possible one at least."""
    least = datetime.min.replace(tzinfo=UTC)
    return time - by if time - least > by else least


def _bucket(request: reads_pb2.GetSeriesRequest) -> timedelta:
    if not request.HasField("bucket"):
        return HOUR
    seconds, nanos = request.bucket.seconds, request.bucket.nanos
    low, high = (bound // timedelta(seconds=1) for bound in (MIN_BUCKET, MAX_BUCKET))
    if nanos or not low <= seconds <= high:
        raise invalid(
            "bucket", f"must be whole seconds from {low} to {high}, got {seconds + nanos / 1e9:g} s"
        )
    bucket = timedelta(seconds=seconds)
    if bucket > HOUR and bucket % HOUR:
        raise invalid("bucket", f"must be whole hours above one hour, got {seconds} s")
    return bucket


def _given(request: reads_pb2.GetConfidenceRequest, field: str) -> datetime | None:
    time: Timestamp = getattr(request, field)
    # HasField is typed to accept the names of the contract only, which these are.
    return parse_time(time, field) if request.HasField(field) else None  # type: ignore[arg-type]
