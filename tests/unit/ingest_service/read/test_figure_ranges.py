from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from sightline.ingest.v1 import ingest_pb2, reads_pb2

from ingest_service.read.figure_ranges import (
    confidence_hours,
    frame_cells,
    frame_filter,
    series_slots,
    versions_filter,
)
from ingest_service.store.figures import Hours
from ingest_service.store.protocol import Filter
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import timestamp

NOW = datetime(2026, 11, 22, 12, 34, 56, tzinfo=UTC)
WHOLE = NOW.replace(minute=0, second=0)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def selected(**fields: Any) -> ingest_pb2.PredictionFilter:
    values: dict[str, Any] = {
        name: timestamp(value) if isinstance(value, datetime) else value
        for name, value in fields.items()
    }
    return ingest_pb2.PredictionFilter(**values)


def series(bucket: float | None = None, **fields: Any) -> reads_pb2.GetSeriesRequest:
    ask = reads_pb2.GetSeriesRequest(filter=selected(**fields))
    if bucket is not None:
        ask.bucket.CopyFrom(Duration(seconds=int(bucket), nanos=round(bucket % 1 * 1e9)))
    return ask


def confidence(
    *, first: datetime | None = None, last: datetime | None = None, **fields: Any
) -> reads_pb2.GetConfidenceRequest:
    return reads_pb2.GetConfidenceRequest(
        filter=selected(**fields),
        reference_start_time=timestamp(first) if first else None,
        reference_end_time=timestamp(last) if last else None,
    )


def test_absent_fields_have_defaults() -> None:
    day = Filter(start_time=NOW - DAY, end_time=NOW)
    slots = series_slots(series(), NOW)
    assert (slots.filter, slots.bucket, len(slots.numbers)) == (day, HOUR, 25)
    assert slots.numbers[0] == (NOW - DAY).timestamp() // 3600
    assert frame_filter(reads_pb2.GetFrameRequest(), NOW) == day
    assert frame_cells(reads_pb2.GetFrameRequest()) == (32, 18)
    assert frame_cells(reads_pb2.GetFrameRequest(columns=64, rows=1)) == (64, 1)
    assert versions_filter(reads_pb2.ListModelVersionsRequest(), NOW) == Filter()
    wanted, now, reference = confidence_hours(confidence(), NOW)
    end = NOW.replace(hour=13, minute=0, second=0)
    assert now == Hours(end - DAY, end)
    assert reference == Hours(end - 8 * DAY, end - DAY)
    assert (wanted.start_time, wanted.end_time) == (now.start, now.end)


@pytest.mark.parametrize(
    ("bucket", "start", "end", "count"),
    [
        (60, NOW - 25 * HOUR, NOW, 1501),  # two of them in part
        (3600, NOW, NOW, 1),
        (3600, NOW.replace(minute=0, second=0), NOW.replace(minute=0, second=0), 0),
        (86_400, NOW - 31 * DAY, NOW, 32),
        (31 * 86_400, NOW - 31 * DAY, NOW, 2),
        (90, NOW.replace(second=0), NOW, 2),
    ],
)
def test_buckets_cover_the_range(bucket: float, start: datetime, end: datetime, count: int) -> None:
    slots = series_slots(series(bucket, start_time=start, end_time=end), NOW)
    assert len(slots.numbers) == count
    if start < end:
        assert slots.numbers[0] == start.timestamp() // bucket
        assert slots.numbers[-1] == (end.timestamp() - 1e-6) // bucket


CLASS: dict[str, Any] = {"class_names": ["pit"]}
UNSURE: dict[str, Any] = {"min_confidence": 0.5}
REFUSED: list[tuple[Callable[..., Any], Any, str]] = [
    (series_slots, series(59), "bucket"),
    (series_slots, series(60.5), "bucket"),
    (series_slots, series(-60), "bucket"),
    (series_slots, series(5400), "bucket"),
    (series_slots, series(32 * 86_400), "bucket"),
    (series_slots, series(start_time=NOW - 63 * DAY), "bucket"),
    (series_slots, series(start_time=NOW + HOUR), "filter.start_time"),
    (series_slots, series(start_time=datetime(1969, 12, 31, tzinfo=UTC)), "filter.start_time"),
    (series_slots, series(start_time=NOW, end_time=NOW - HOUR), "filter.end_time"),
    (series_slots, series(600, start_time=NOW - 26 * HOUR), "filter.start_time"),
    (series_slots, series(start_time=NOW - 26 * HOUR, **CLASS), "filter.start_time"),
    (series_slots, series(start_time=NOW - 26 * HOUR, **UNSURE), "filter.start_time"),
    (series_slots, series(min_confidence=2), "filter.min_confidence"),
    (confidence_hours, confidence(**UNSURE), "filter.min_confidence"),
    (confidence_hours, confidence(end_time=NOW), "filter.start_time"),
    (confidence_hours, confidence(start_time=NOW - DAY), "filter.start_time"),
    (confidence_hours, confidence(first=NOW - 3 * DAY), "reference_start_time"),
    (
        confidence_hours,
        confidence(first=WHOLE, last=WHOLE - HOUR),
        "reference_end_time",
    ),
    (frame_cells, reads_pb2.GetFrameRequest(columns=65), "columns"),
    (frame_cells, reads_pb2.GetFrameRequest(rows=-1), "rows"),
    (
        frame_filter,
        reads_pb2.GetFrameRequest(filter=selected(start_time=NOW - 31 * DAY - HOUR)),
        "filter.start_time",
    ),
    (
        versions_filter,
        reads_pb2.ListModelVersionsRequest(filter=selected(**CLASS)),
        "filter.start_time",
    ),
    (
        versions_filter,
        reads_pb2.ListModelVersionsRequest(filter=selected(start_time=NOW - 26 * HOUR, **UNSURE)),
        "filter.start_time",
    ),
]


@pytest.mark.parametrize(("parse", "ask", "field"), REFUSED)
def test_what_is_out_of_bounds_is_refused_by_field(
    parse: Callable[..., Any], ask: Any, field: str
) -> None:
    with pytest.raises(SightlineError) as caught:
        parse(ask) if parse is frame_cells else parse(ask, NOW)
    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("fields", [CLASS, UNSURE])
def test_counts_by_detections_are_of_a_day(fields: dict[str, Any]) -> None:
    start = NOW - 25 * HOUR
    assert len(series_slots(series(start_time=start, **fields), NOW).numbers) == 26
    ask = reads_pb2.ListModelVersionsRequest(filter=selected(start_time=start, **fields))
    assert versions_filter(ask, NOW).end_time == NOW


def test_the_earliest_times_are_no_crash() -> None:
    least = datetime(1, 1, 1, 0, 0, tzinfo=UTC)
    wanted, _, reference = confidence_hours(confidence(start_time=least, end_time=least), NOW)
    assert wanted.start_time == least == reference.start
    with pytest.raises(SightlineError, match="1970"):
        series_slots(series(end_time=least), NOW)
