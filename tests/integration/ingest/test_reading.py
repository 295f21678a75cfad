"""GetStats and ListPredictions over real sockets."""

from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from sightline.ingest.v1 import ingest_pb2
from sightline.ingest.v1 import ingest_service_pb2 as messages
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from sightline.types.v1.prediction_pb2 import BoundingBox, Keypoint, PredictionSource

from ingest_service.server import MAX_PAGE_BYTES, read_page
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.protocol import (
    Count,
    Filter,
    JudgedCount,
    Stats,
    StatsDetails,
    StoredPrediction,
)
from ingest_service.translate import stats_response
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.unit.ingest_service.samples import (
    NOW,
    detection,
    gap,
    header,
    message,
    prediction,
    predictions,
    request,
    spool,
    timestamp,
)
from tests.unit.ingest_service.store_conformance import commit


def listed(server: IngestProcess, **ask: object) -> messages.ListPredictionsResponse:
    return server.stub.ListPredictions(
        messages.ListPredictionsRequest(**ask),  # type: ignore[arg-type]
        timeout=PATIENCE,
    )


def test_every_page_is_small_enough_for_any_client(start: Start) -> None:
    server = start("--max-message-bytes", str(16 << 20))
    labels = {f"{n:02}{'l' * 1022}": "v" * 1024 for n in range(64)}
    wide = detection(class_name="c" * 256, class_id=2**31 - 1, track_id=2**63 - 1)
    names = {"image_id": "i" * 512, "model_name": "m" * 256, "model_version": "v" * 256}
    largest = [prediction(n, labels=labels, detections=[wide] * 10_000, **names) for n in (1, 2, 3)]
    assert MAX_PAGE_BYTES * 0.8 < largest[0].ByteSize() < MAX_PAGE_BYTES
    small = [prediction(n, labels=labels) for n in range(4, 60)]
    assert server.log_messages(request(*largest, head=header()), request(*small)).accepted == 59
    sequences, sizes, token = list[int](), list[int](), "first"
    while token:
        ask = {"page_size": 1000, "page_token": token if sequences else ""}
        page = listed(server, **ask)  # of a client with gRPC's defaults
        sequences += [row.prediction.sequence for row in page.predictions]
        sizes.append(page.ByteSize())
        token = page.next_page_token
    assert sequences == list(range(59, 0, -1))
    assert max(sizes) < 4 << 20


def test_a_larger_prediction_is_alone_in_its_page(start: Start) -> None:
    points = [Keypoint(x=1.5, y=2.5, confidence=0.5)] * 1000
    posed = [detection(keypoints=points)] * 300
    server = start("--max-message-bytes", str(16 << 20))
    parts = [prediction(1), prediction(2, detections=posed), prediction(3)]
    assert server.log_messages(request(*parts, head=header())).accepted == 3
    server.stop()
    server = start("--max-message-bytes", "1024")  # a lower limit than when it was logged
    large = [("grpc.max_receive_message_length", 16 << 20)]
    pages, token = list[messages.ListPredictionsResponse](), ""
    with grpc.insecure_channel(server.address, large) as channel:
        stub = IngestServiceStub(channel)
        while token or not pages:
            ask = messages.ListPredictionsRequest(page_token=token)
            pages.append(stub.ListPredictions(ask, timeout=PATIENCE))
            token = pages[-1].next_page_token
    sequences = [[row.prediction.sequence for row in page.predictions] for page in pages]
    assert sequences == [[3], [2], [1]]
    assert pages[1].ByteSize() > 4 << 20


def test_large_rows_are_read_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {f"{n:02}{'l' * 1022}": "v" * 1024 for n in range(64)}
    large = [prediction(n, labels=labels) for n in range(1, 301)]  # 131 kB each
    with closing(DuckDBStore(tmp_path / "test.duckdb")) as store:
        commit(store, message(*large))
        reader, read = store.reader(), list[int]()
        whole = reader.page

        def counted(*ask: Any) -> Sequence[StoredPrediction]:
            rows = whole(*ask)
            read.append(len(rows))
            return rows

        with closing(reader):
            monkeypatch.setattr(reader, "page", counted)
            page, last = read_page(reader, Filter(), 1000, None, MAX_PAGE_BYTES)
            assert last is not None
            assert (read, len(page.predictions), last.sequence) == ([101], 28, 273)
            read.clear()
            page, last = read_page(reader, Filter(), 1000, None, 100_000_000)
            assert (read, len(page.predictions), last) == ([101, 200], 300, None)


def test_the_largest_statistics_are_small_enough_for_any_client() -> None:
    def counts(size: int) -> list[JudgedCount]:
        return [JudgedCount("k" * size, 2**62, 2**62, 2**62) for _ in range(1000)]

    by_name = [Count("k" * 256, 2**62, 2**62) for _ in range(1000)]
    details = StatsDetails(2**62, {}, counts(256), counts(1024))
    total = 2**62
    named = (by_name, by_name, by_name, by_name)
    stats = Stats(total, total, total, *named, None, None, None, 0, 0, details)
    assert 2 << 20 < stats_response(stats).ByteSize() < 4 << 20


def test_statistics_of_what_was_logged(server: IngestProcess) -> None:
    before = timestamp(NOW - timedelta(days=400))
    after = timestamp(NOW - timedelta(days=300))
    quantile = Duration(seconds=1)
    server.log_messages(
        request(
            prediction(
                1, defect_detected=True, captured_at=before, inference_time=Duration(seconds=1)
            ),
            prediction(2, defect_detected=False, captured_at=after, detections=[detection()] * 3),
            prediction(3, model_name=""),
            gap(4, 9),
            head=header(spool(1)),
        )
    )
    server.log_messages(
        request(
            prediction(
                1,
                captured_at=after,
                source=PredictionSource.PREDICTION_SOURCE_CLOUD,
                detections=[detection(class_name="pit")],
            ),
            head=header(spool(2)),
        )
    )
    got = server.stub.GetStats(messages.GetStatsRequest(), timeout=PATIENCE)
    assert got == messages.GetStatsResponse(
        total_predictions=3,
        defects_detected=1,
        total_detections=5,
        by_device=[
            ingest_pb2.CountByKey(key="gate-1", count=2, defects=1),
            ingest_pb2.CountByKey(key="gate-2", count=1),
        ],
        by_model=[ingest_pb2.CountByKey(key="plates", count=3, defects=1)],
        by_source=[
            ingest_pb2.CountByKey(key="device", count=2, defects=1),
            ingest_pb2.CountByKey(key="cloud", count=1),
        ],
        by_class=[
            ingest_pb2.CountByKey(key="scratch", count=4),
            ingest_pb2.CountByKey(key="pit", count=1),
        ],
        inference_time=ingest_pb2.LatencyQuantiles(p50=quantile, p95=quantile, p99=quantile),
        first_captured_at=before,
        last_captured_at=after,
        rejected=1,
        gap_sequences=6,
    )
    filter_ = ingest_pb2.PredictionFilter(device_ids=["gate-2"], class_names=["pit"])
    narrow = server.stub.GetStats(messages.GetStatsRequest(filter=filter_), timeout=PATIENCE)
    assert (narrow.total_predictions, narrow.rejected, narrow.gap_sequences) == (1, 0, 0)
    assert not narrow.HasField("inference_time")


def test_an_empty_store_has_empty_answers(server: IngestProcess) -> None:
    got = server.stub.GetStats(messages.GetStatsRequest(), timeout=PATIENCE)
    assert got == messages.GetStatsResponse()
    assert listed(server) == messages.ListPredictionsResponse()


def test_pages_hold_each_prediction_once_while_more_are_logged(server: IngestProcess) -> None:
    for number in (1, 2):
        server.log_messages(request(*predictions(1, 50), head=header(spool(number))))
    sequences: list[tuple[str, int]] = []
    token = ""
    while True:
        page = listed(server, page_size=9, page_token=token)
        sequences += [(stored.device_id, stored.prediction.sequence) for stored in page.predictions]
        token = page.next_page_token
        if not token:
            break
        last = len(sequences)
        server.log_messages(request(prediction(50 + last // 9), head=header(spool(1))))
    expected = [(f"gate-{number}", sequence) for number in (1, 2) for sequence in range(1, 51)]
    assert sorted(sequences) == sorted(expected)
    assert sequences[:50] == [("gate-2", sequence) for sequence in range(50, 0, -1)]


def test_a_page_that_ends_the_list_says_so(server: IngestProcess) -> None:
    server.log_messages(request(*predictions(1, 20), head=header()))
    assert listed(server, page_size=20).next_page_token == ""
    assert listed(server, page_size=19).next_page_token != ""
    assert len(listed(server).predictions) == 20


def test_a_page_is_cut_before_it_is_too_large_to_send(start: Start) -> None:
    server = start("--max-message-bytes", "100000")
    large = [detection(class_name="c" * 200)] * 100
    sent = [prediction(sequence, detections=large) for sequence in range(1, 21)]
    for stored in sent:
        server.log_messages(request(stored, head=header()))
    sequences: list[int] = []
    token = ""
    while True:
        page = listed(server, page_size=1000, page_token=token)
        assert 1 <= len(page.predictions) < 20
        sequences += [stored.prediction.sequence for stored in page.predictions]
        token = page.next_page_token
        if not token:
            break
    assert sequences == list(range(20, 0, -1))


def test_a_box_and_a_verdict_come_back_as_sent(server: IngestProcess) -> None:
    box = BoundingBox(x_min=0.1, y_min=0.2, x_max=0.3, y_max=0.4)
    sent = prediction(1, defect_detected=False, detections=[detection(box=box, track_id=0)])
    server.log_messages(request(sent, head=header(device_time=timestamp(NOW))))
    (stored,) = listed(server).predictions
    assert stored.prediction == sent
    assert (stored.device_id, stored.HasField("received_at")) == ("gate-1", True)
    assert stored.HasField("clock_offset")


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_size": 1001}, "page_size"),
        ({"page_token": "nonsense"}, "page_token"),
        ({"filter": ingest_pb2.PredictionFilter(min_confidence=2)}, "filter.min_confidence"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_field(
    shared_server: IngestProcess, ask: dict[str, object], field: str
) -> None:
    with refused() as errors:
        listed(shared_server, **ask)
    assert errors[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in errors[0].violations] == [field]


def test_a_token_is_refused_with_another_filter(server: IngestProcess) -> None:
    server.log_messages(request(*predictions(1, 5), head=header()))
    token = listed(server, page_size=2).next_page_token
    with refused() as errors:
        listed(server, page_token=token, filter=ingest_pb2.PredictionFilter(device_ids=["x"]))
    assert errors[0].reason == "INVALID_PAGE_TOKEN"


def test_text_in_a_filter_is_never_sql(server: IngestProcess) -> None:
    server.log_messages(request(prediction(1), head=header()))
    for text in ("' OR true --", "'); DROP TABLE predictions; --", "$size", "{where}"):
        filter_ = ingest_pb2.PredictionFilter(
            device_ids=[text], model_names=[text], class_names=[text]
        )
        assert not listed(server, filter=filter_).predictions
    assert len(listed(server).predictions) == 1
