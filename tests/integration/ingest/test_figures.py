"""GetSeries, GetFrame, GetConfidence and ListModelVersions over real sockets."""

import itertools
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from sightline.ingest.v1 import ingest_pb2, reads_pb2
from sightline.types.v1.prediction_pb2 import Prediction

from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.unit.ingest_service import naive_figures as naive
from tests.unit.ingest_service.samples import (
    NOW,
    detection,
    header,
    prediction,
    request,
    spool,
    timestamp,
)

HOUR = timedelta(hours=1)
MIB = 1 << 20


def call(server: IngestProcess, method: str, **fields: Any) -> Any:
    ask = getattr(reads_pb2, f"{method}Request")(**fields)
    return getattr(server.stub, method)(ask, timeout=PATIENCE)


def selected(**fields: Any) -> ingest_pb2.PredictionFilter:
    values: dict[str, Any] = {
        name: timestamp(value) if isinstance(value, datetime) else value
        for name, value in fields.items()
    }
    return ingest_pb2.PredictionFilter(**values)


@pytest.fixture(scope="module")
def whole() -> datetime:
    """The present hour."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


@pytest.fixture(scope="module")
def logged(shared_server: IngestProcess, whole: datetime) -> list[Prediction]:
    """Predictions of two devices in the six hours before the present one."""
    sent = naive.scattered_figures(random.Random(11), 1, 60)
    shift = whole - NOW
    for p in sent:
        p.captured_at.CopyFrom(timestamp(p.captured_at.ToDatetime(tzinfo=UTC) + shift))
    for number, half in ((1, sent[:30]), (2, sent[30:])):
        for sequence, p in enumerate(half, 1):
            p.sequence = sequence
        answer = shared_server.log_messages(request(*half, head=header(spool(number))))
        assert answer.accepted == 30
    return sent


@pytest.mark.parametrize("bucket", [timedelta(minutes=10), HOUR, 6 * HOUR])
def test_a_series_has_every_bucket_of_its_range(
    shared_server: IngestProcess, logged: list[Prediction], whole: datetime, bucket: timedelta
) -> None:
    length = Duration(seconds=round(bucket.total_seconds()))
    got = call(
        shared_server,
        "GetSeries",
        filter=selected(start_time=whole - 12 * HOUR, end_time=whole),
        bucket=length,
    )
    assert got.bucket == length
    starts = [b.start_time.ToDatetime(tzinfo=UTC) for b in got.buckets]
    assert starts[0] <= whole - 12 * HOUR < starts[0] + bucket
    assert starts[-1] < whole <= starts[-1] + bucket
    assert {b - a for a, b in itertools.pairwise(starts)} == {bucket}
    slots = naive.series_of(logged, round(bucket.total_seconds() * 1e6))
    for start, part in zip(starts, got.buckets, strict=True):
        alone = slots.get(int(start.timestamp() // bucket.total_seconds()), [])
        tally = naive.tally_of(alone)
        assert (part.predictions, part.defects) == (tally.predictions, tally.defects)
        assert (part.with_verdict, part.from_cloud) == (tally.with_verdict, tally.from_cloud)
        assert part.detections == tally.detections
        assert {c.key: c.count for c in part.by_class} == naive.classes_of(alone)
        assert {
            c.key: (c.count, c.defects, c.with_verdict) for c in part.by_cloud_reason
        } == naive.reasons_of(alone)
        expected = naive.quantiles_of(alone)
        assert part.HasField("inference_time") == (expected is not None)
        if expected is not None:
            p50 = part.inference_time.p50.ToNanoseconds() / 1e9
            assert p50 == pytest.approx(expected[0], rel=0.01)
    assert sum(part.predictions for part in got.buckets) == len(logged)
    assert abs(got.as_of.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=5)


def test_the_frame_and_the_versions_are_those_of_plain_python(
    shared_server: IngestProcess, logged: list[Prediction]
) -> None:
    frame = call(shared_server, "GetFrame", columns=4, rows=3)
    expected = naive.frame_of(logged, 4, 3)
    assert {grid.class_name: tuple(grid.cells) for grid in frame.grids} == expected.by_class
    assert [grid.detections for grid in frame.grids] == list(map(sum, expected.by_class.values()))
    assert (frame.columns, frame.rows, frame.sampled) == (4, 3, 1.0)
    assert (frame.predictions, frame.without_position) == (60, expected.without_position)
    assert (frame.image_width, frame.image_height) == expected.image_size
    assert call(shared_server, "GetFrame").columns == 32
    versions = call(shared_server, "ListModelVersions").versions
    of_device = [("gate-1" if at < 30 else "gate-2", p) for at, p in enumerate(logged)]
    figures = [figures for figures, _ in naive.versions_of(of_device)]
    for got, of in zip(versions, figures, strict=True):
        assert (got.model_name, got.model_version) == (of.model_name, of.model_version)
        assert (got.predictions, got.defects) == (of.tally.predictions, of.tally.defects)
        assert (got.with_verdict, got.from_cloud) == (of.tally.with_verdict, of.tally.from_cloud)
        assert (got.detections, got.devices) == (of.tally.detections, of.devices)
        assert tuple(got.confidences) == of.confidences
        assert got.first_captured_at.ToMicroseconds() == of.first_captured_us
        assert got.last_captured_at.ToMicroseconds() == of.last_captured_us


def test_confidences_are_compared_with_an_earlier_time(
    shared_server: IngestProcess, logged: list[Prediction], whole: datetime
) -> None:
    middle = whole - 2 * HOUR
    got = call(shared_server, "GetConfidence", filter=selected(start_time=middle, end_time=whole))
    now = [p for p in logged if p.captured_at.ToDatetime(tzinfo=UTC) >= middle]
    before = [p for p in logged if p not in now]
    everything, by_class = naive.confidences_of(now, before)
    assert tuple(got.all.current) == everything.current
    assert tuple(got.all.reference) == everything.reference
    assert got.all.stability_index > 0
    assert got.all.chance_index == pytest.approx(
        43.8202 * (1 / sum(everything.current) + 1 / sum(everything.reference))
    )
    assert [comparison.class_name for comparison in got.by_class] == [name for name, _ in by_class]
    assert got.reference_end_time == got.start_time == timestamp(middle)
    assert got.reference_start_time == timestamp(middle - timedelta(days=7))
    empty = call(shared_server, "GetConfidence", filter=selected(device_ids=["nobody"])).all
    assert not empty.HasField("stability_index")
    assert not empty.HasField("chance_index")


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("GetSeries", {"bucket": Duration(seconds=30)}, "bucket"),
        ("GetFrame", {"columns": 65}, "columns"),
        ("GetConfidence", {"filter": selected(min_confidence=0.5)}, "filter.min_confidence"),
        ("ListModelVersions", {"filter": selected(class_names=["pit"])}, "filter.start_time"),
    ],
)
def test_requests_out_of_bounds_are_refused_by_field(
    shared_server: IngestProcess, method: str, fields: dict[str, Any], field: str
) -> None:
    with refused() as errors:
        call(shared_server, method, **fields)
    assert errors[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in errors[0].violations] == [field]


def _of_long_classes(hours: int) -> Iterator[Prediction]:
    now = datetime.now(UTC)
    for hour in range(hours):
        yield prediction(
            hour + 1,
            captured_at=timestamp(now - hour * HOUR),
            detections=[detection(class_name=f"{k:02}" + "c" * 254) for k in range(20)],
        )


def test_the_longest_series_is_small_enough_for_any_client(start: Start) -> None:
    server, hours = start(), 1490
    every = list(_of_long_classes(hours))
    for at in range(0, hours, 300):
        server.log_messages(request(*every[at : at + 300], head=header()))
    begin = datetime.now(UTC) - 1495 * HOUR
    got = call(server, "GetSeries", filter=selected(start_time=begin))
    assert 1 * MIB < got.ByteSize() < 4 * MIB
    assert sum(bucket.detections for bucket in got.buckets) == hours * 20
    named = {tuple(c.key[:2] for c in bucket.by_class) for bucket in got.buckets if bucket.by_class}
    assert named == {tuple(f"{k:02}" for k in range(5))}
