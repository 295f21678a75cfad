"""ListDevices, GetLedger, ListGaps, ListRejections and GetPrediction over real sockets."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from sightline.ingest.v1 import ingest_pb2, reads_pb2

from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.unit.ingest_service.record_conformance import bad
from tests.unit.ingest_service.samples import (
    SPOOL,
    gap,
    header,
    prediction,
    predictions,
    request,
    spool,
)

ACCOUNT = ingest_pb2.NodeAccount(
    waiting_predictions=12,
    spool_bytes=4096,
    oldest_waiting=Duration(seconds=90, nanos=500_000_000),
    dropped=[
        ingest_pb2.DroppedCount(reason=ingest_pb2.GAP_REASON_SPOOL_AGE, count=2),
        ingest_pb2.DroppedCount(reason=77, count=1),  # type: ignore[arg-type] # of a newer node
    ],
    logged=9,
    uptime=Duration(seconds=5),
)


def call(server: IngestProcess, method: str, **fields: Any) -> Any:
    ask = getattr(reads_pb2, f"{method}Request")(**fields)
    return getattr(server.stub, method)(ask, timeout=PATIENCE)


def pages(server: IngestProcess, method: str, **fields: Any) -> Iterator[Any]:
    """Yield the pages of a listing, read by a client with gRPC's defaults."""
    token = ""
    while True:
        page = call(server, method, page_token=token, **fields)
        yield page
        token = page.next_page_token
        if not token:
            return


def test_devices_are_listed_with_their_account(start: Start) -> None:
    server = start()
    head = header(client="camera/2", account=ACCOUNT)
    head.device_time.GetCurrentTime()
    server.log_messages(request(*predictions(1, 6), bad(7), gap(8, 9), head=head))
    for number in range(2, 5):
        server.log_messages(request(prediction(1), head=header(spool(number))))
    server.log_messages(request(head=header(spool(5))))  # commits nothing
    for restart in (False, True):
        if restart:
            server.stop()
            server = start()  # reads it from the file
        found = [d for page in pages(server, "ListDevices", page_size=2) for d in page.devices]
        assert [d.device_id for d in found] == [f"gate-{n}" for n in range(1, 6)]
        device = found[0]
        assert device.account == ACCOUNT
        assert device.client == "camera/2"
        assert abs(device.clock_offset.ToTimedelta().total_seconds()) < 60
        assert (device.predictions, device.rejected, device.gap_sequences) == (6, 1, 2)
        assert len(device.predictions_by_hour) == 24
        assert not found[1].HasField("account")
        assert not found[1].HasField("clock_offset")
        assert found[4].HasField("stream_opened_at")
        assert not found[4].HasField("last_received_at")
    page = call(server, "ListDevices", device_ids=["gate-1"], window=Duration(seconds=86_400))
    assert [d.predictions_per_second for d in page.devices] == [6 / 86_400]
    assert 0 <= page.server_time.seconds - page.devices[0].last_received_at.seconds < PATIENCE


def test_the_ledger_gaps_and_rejections_of_a_log(server: IngestProcess) -> None:
    server.log_messages(
        request(prediction(1), bad(2), gap(3, 5, reason=4), gap(6, 6, reason=77), head=header()),
        request(prediction(7), prediction(7 + 1)),
    )
    server.log_messages(request(*predictions(1, 3), head=header(spool(2))))
    answer = call(server, "GetLedger")
    assert [entry.device_id for entry in answer.entries] == ["gate-2", "gate-1"]
    entry = answer.entries[1]
    assert (entry.accepted, entry.rejected, entry.gap_sequences) == (3, 1, 4)
    assert (entry.committed_through, entry.balanced, entry.expired) == (8, True, 0)
    assert [(c.key, c.count) for c in entry.gaps_by_reason] == [("spool_age", 3), ("reason_77", 1)]
    assert [c.key for c in entry.rejected_by_reason] == ["CONFIDENCE_OUT_OF_RANGE"]
    assert (answer.total.accepted, answer.total.committed_through) == (6, 11)
    assert answer.total.balanced
    listed = [e for page in pages(server, "GetLedger", page_size=1) for e in page.entries]
    assert listed == list(answer.entries)
    assert [page.total for page in pages(server, "GetLedger", page_size=1)] == [answer.total] * 2

    (found,) = call(server, "ListGaps", reason=77).gaps
    assert (found.device_id, found.gap.first_sequence, found.gap.last_sequence) == ("gate-1", 6, 6)
    assert found.gap.reason == 77
    listed = [g for page in pages(server, "ListGaps", page_size=1) for g in page.gaps]
    assert [g.gap.first_sequence for g in listed] == [6, 3]
    (rejected,) = call(server, "ListRejections", reason="CONFIDENCE_OUT_OF_RANGE").rejections
    assert rejected.rejection.field == "detections[0].confidence"
    assert '"image_id": "image-2"' in rejected.original
    assert not call(server, "ListRejections", device_ids=["gate-2"]).rejections


def test_one_sequence(server: IngestProcess) -> None:
    sent = prediction(2**63 - 1, labels={"line": "4"})
    server.log_messages(request(bad(1), gap(2, 2**63 - 2), sent, head=header()))

    def found(sequence: int) -> Any:
        return call(server, "GetPrediction", **SPOOL._asdict(), sequence=sequence)

    assert found(1).rejection.rejection.sequence == 1
    assert found(7).gap.gap.last_sequence == 2**63 - 2
    assert found(2**63 - 1).prediction.prediction == sent
    for of, sequence in ((SPOOL._replace(device_id="x"), 1), (spool(9), 1)):
        with refused() as errors:
            call(server, "GetPrediction", **of._asdict(), sequence=sequence)
        assert (errors[0].code, errors[0].reason) == (grpc.StatusCode.NOT_FOUND, "NOT_COMMITTED")


def test_pages_of_large_rejections_are_small(server: IngestProcess) -> None:
    large = [prediction(n, image_id="i" * 1_500_000) for n in range(1, 6)]
    for number in range(0, 5, 2):
        server.log_messages(request(*large[number : number + 2], head=header()))
    sequences = list[int]()
    for page in pages(server, "ListRejections", page_size=1000):
        assert page.ByteSize() < 4 << 20
        sequences += [r.rejection.sequence for r in page.rejections]
    assert sequences == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("ListDevices", {"window": Duration(seconds=59, nanos=999_999_999)}, "window"),
        ("ListDevices", {"window": Duration(seconds=86_400, nanos=1)}, "window"),
        ("ListDevices", {"page_size": 1001}, "page_size"),
        ("GetLedger", {"page_size": -1}, "page_size"),
        ("GetLedger", {"page_token": "x"}, "page_token"),
        ("ListGaps", {"device_ids": ["d"] * 1001}, "device_ids"),
        ("ListGaps", {"reason": -1}, "reason"),
        ("ListRejections", {"page_token": "W10"}, "page_token"),
        ("GetPrediction", {}, "device_id"),
        ("GetPrediction", {"device_id": "a", "spool_id": "b"}, "spool_id"),
        ("GetPrediction", {**SPOOL._asdict(), "sequence": 0}, "sequence"),
    ],
)
def test_bad_requests_name_the_field(
    shared_server: IngestProcess, method: str, fields: dict[str, Any], field: str
) -> None:
    with refused() as errors:
        call(shared_server, method, **fields)
    assert errors[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in errors[0].violations] == [field]


def test_a_token_of_another_listing_is_refused(server: IngestProcess) -> None:
    for number in (1, 2):
        server.log_messages(request(bad(1), gap(2, 2), head=header(spool(number))))
    token = call(server, "ListGaps", page_size=1).next_page_token
    for method, fields in (
        ("ListRejections", {}),
        ("ListDevices", {}),
        ("GetLedger", {}),
        ("ListGaps", {"reason": 1}),
        ("ListGaps", {"device_ids": ["gate-1"]}),
    ):
        with refused() as errors:
            call(server, method, page_token=token, **fields)
        assert errors[0].reason == "INVALID_PAGE_TOKEN"
