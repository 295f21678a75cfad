"""PredictionLog and GetWatermark over real sockets."""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from sightline.ingest.v1 import ingest_service_pb2 as messages
from sightline.ingest.v1.ingest_pb2 import LogHeader, Rejection
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service.store.protocol import SpoolKey
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.unit.ingest_service.samples import (
    SPOOL,
    detection,
    gap,
    header,
    prediction,
    predictions,
    request,
    spool,
    timestamp,
)


def batches(of: SpoolKey, last: int, size: int, *, first: int = 1) -> Iterator[bytes]:
    """Yield a stream of valid messages."""
    head: LogHeader | None = header(of)
    for start in range(first, last + 1, size):
        yield request(
            *predictions(start, min(start + size - 1, last)), head=head
        ).SerializeToString()
        head = None


def wait_for_watermark(server: IngestProcess, of: SpoolKey, position: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.watermark(of) < position:
        assert time.monotonic() < deadline, f"{position} is never committed"
        time.sleep(0.01)


@pytest.mark.parametrize(("undated", "accepted"), [("server-time", 1), ("reject", 0)])
def test_a_setting_decides_on_predictions_without_a_time(
    start: Start, undated: str, accepted: int
) -> None:
    server = start("--undated", undated)
    lost = prediction(1, captured_at=timestamp(datetime(1970, 1, 1, tzinfo=UTC)))
    answer = server.log_messages(request(lost, head=header()))
    assert (answer.accepted, answer.rejected) == (accepted, 1 - accepted)


def test_a_stream_without_a_deadline_lasts_while_messages_come(start: Start) -> None:
    server = start("--default-deadline-seconds", "0.2")
    began = time.monotonic()

    def sent() -> Iterator[messages.PredictionLogRequest]:
        yield request(prediction(1), head=header())
        while time.monotonic() < began + 1:  # five times the default deadline
            time.sleep(0.1)
            yield request()
        yield request(prediction(2))

    assert server.stub.PredictionLog(sent()).committed_through == 2


def test_a_stream_is_committed_and_counted(server: IngestProcess) -> None:
    answer = server.log_messages(
        request(*predictions(1, 3), head=header()),
        request(),
        request(prediction(4), gap(5, 7), prediction(8)),
    )
    assert answer == messages.PredictionLogResponse(
        committed_through=8, accepted=5, gap_sequences=3
    )
    assert server.watermark(SPOOL) == 8
    assert server.watermark(spool(1)) == 0
    server.stop()
    assert server.query("SELECT sequence, image_id FROM predictions ORDER BY ALL") == [
        (sequence, f"image-{sequence}") for sequence in (1, 2, 3, 4, 8)
    ]
    assert server.query("SELECT balanced FROM ledger") == [(True,)]


def test_a_stream_of_nothing_but_its_header_tells_the_position(server: IngestProcess) -> None:
    server.log_messages(request(*predictions(1, 3), head=header()))
    assert server.log_messages(request(head=header())).committed_through == 3


def test_what_comes_again_is_a_duplicate_and_success(server: IngestProcess) -> None:
    sent = request(*predictions(1, 5), gap(6, 6), head=header())
    server.log_messages(sent)
    assert server.log_messages(sent) == messages.PredictionLogResponse(
        committed_through=6, duplicates=5
    )
    overlapping = request(*predictions(4, 5), gap(6, 6), *predictions(7, 8), head=header())
    answer = server.log_messages(overlapping)
    assert (answer.committed_through, answer.accepted, answer.duplicates) == (8, 2, 2)
    server.stop()
    assert server.query("SELECT accepted, gap_sequences, duplicates, balanced FROM ledger") == [
        (7, 1, 7, True)
    ]


def test_a_hole_is_refused_with_the_sequence_that_is_expected(server: IngestProcess) -> None:
    with refused() as errors:
        server.log_messages(
            request(*predictions(1, 3), head=header()),
            request(prediction(4), prediction(6)),
            request(prediction(7)),
        )
    assert errors[0].code is grpc.StatusCode.FAILED_PRECONDITION
    assert errors[0].reason == "SEQUENCE_HOLE"
    assert errors[0].metadata["expected_sequence"] == "5"
    assert server.watermark(SPOOL) == 4, "what came before the hole is committed"
    assert server.log_messages(request(*predictions(5, 7), head=header())).accepted == 3


def test_an_open_stream_learns_of_its_hole_at_once(server: IngestProcess) -> None:
    ended = threading.Event()

    def half_open() -> Iterator[messages.PredictionLogRequest]:
        yield request(prediction(2), head=header())
        ended.wait(PATIENCE)  # neither sends nor closes

    with refused() as errors:
        server.stub.PredictionLog(half_open(), timeout=PATIENCE)
    ended.set()
    assert errors[0].reason == "SEQUENCE_HOLE"


def test_rejected_predictions_are_kept_and_told(server: IngestProcess) -> None:
    answer = server.log_messages(
        request(
            prediction(1),
            prediction(2, detections=[detection(), detection(confidence=math.nan)]),
            prediction(3, captured_at=timestamp(datetime.now(UTC) + timedelta(days=1, minutes=5))),
            prediction(4, captured_at=timestamp(datetime.now(UTC) + timedelta(hours=23))),
            head=header(),
        )
    )
    assert (answer.accepted, answer.rejected, answer.committed_through) == (2, 2, 4)
    assert list(answer.rejections) == [
        Rejection(sequence=2, field="detections[1].confidence", reason="CONFIDENCE_OUT_OF_RANGE"),
        Rejection(sequence=3, field="captured_at", reason="CAPTURED_AT_IN_FUTURE"),
    ]
    server.stop()
    assert server.query(
        "SELECT sequence, field, original->>'$.detections[1].confidence'"
        " FROM rejected_predictions ORDER BY sequence"
    ) == [(2, "detections[1].confidence", "NaN"), (3, "captured_at", None)]


def test_rejections_beyond_a_thousand_are_counted_and_kept(server: IngestProcess) -> None:
    bad = [prediction(sequence, model_name="") for sequence in range(1, 1202)]
    answer = server.log_messages(request(*bad, head=header()))
    assert (answer.rejected, len(answer.rejections)) == (1201, 1000)
    server.stop()
    assert server.query("SELECT count(*) FROM rejected_predictions") == [(1201,)]


def test_the_clocks_of_a_stream_are_stored(server: IngestProcess) -> None:
    wrong = timestamp(datetime.now(UTC) - timedelta(hours=2))
    server.log_messages(request(prediction(1), head=header(device_time=wrong, client="test/1")))
    server.stop()
    ((offset, client),) = server.query("SELECT clock_offset_seconds, client FROM streams")
    assert 7200 <= offset < 7200 + PATIENCE
    assert client == "test/1"


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ([], "header"),
        ([request(prediction(1))], "header"),
        ([request(head=header(SPOOL._replace(device_id="")))], "header.device_id"),
        ([request(head=header(SPOOL._replace(spool_id="x")))], "header.spool_id"),
        ([request(head=header()), request(head=header())], "header"),
        ([request(prediction(2), prediction(1), head=header())], "predictions[1].sequence"),
        ([request(gap(3, 2), head=header())], "gaps[0].last_sequence"),
        ([request(gap(1, 2, reason=0), head=header())], "gaps[0].reason"),
        ([request(prediction(1), gap(1, 2), head=header())], "gaps"),
        ([request(*[Prediction()] * 10_001, head=header())], "predictions"),
    ],
)
def test_a_stream_that_breaks_a_rule_is_refused_by_field(
    shared_server: IngestProcess, sent: list[messages.PredictionLogRequest], field: str
) -> None:
    with refused() as errors:
        shared_server.log_messages(*sent)
    assert errors[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in errors[0].violations] == [field]
    assert shared_server.watermark(SPOOL) == 0


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        ({"device_id": "", "spool_id": SPOOL.spool_id}, "device_id"),
        ({"device_id": "d" * 257, "spool_id": SPOOL.spool_id}, "device_id"),
        ({"device_id": "d", "spool_id": ""}, "spool_id"),
    ],
)
def test_a_position_is_asked_for_by_a_valid_name(
    shared_server: IngestProcess, ask: dict[str, str], field: str
) -> None:
    with refused() as errors:
        shared_server.stub.GetWatermark(messages.GetWatermarkRequest(**ask), timeout=PATIENCE)
    assert [violation.field for violation in errors[0].violations] == [field]


def test_a_message_that_is_too_large_is_refused_and_what_came_before_it_stays(
    start: Start,
) -> None:
    server = start("--max-message-bytes", "10000")
    with refused() as errors:
        server.log_messages(
            request(prediction(1), head=header()),
            request(prediction(2, labels={str(n): "v" * 1000 for n in range(11)})),
        )
    assert errors[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert errors[0].reason == "MESSAGE_TOO_LARGE"
    assert server.watermark(SPOOL) == 1


@pytest.mark.parametrize(
    "damaged",
    [
        b"\xff",
        b"\x12" + b"\xf9" + b"\xff" * 8 + b"\x01",  # a length near 2**64
        b"\x7b\x08\x01" * 1_300_000,  # groups in groups
    ],
)
def test_a_malformed_message_ends_its_stream_and_harms_no_other(
    server: IngestProcess, damaged: bytes
) -> None:
    others = [spool(number) for number in range(1, 5)]
    stop = threading.Event()

    def log_until_told(of: SpoolKey) -> int:
        last = 0
        while not stop.is_set():
            server.log_bytes(batches(of, last + 20, 5, first=last + 1))
            last += 20
        return last

    with ThreadPoolExecutor(len(others)) as devices:
        logging = [devices.submit(log_until_told, of) for of in others]
        try:
            for attempt in range(5):
                first, after = 3 * attempt + 1, 3 * attempt + 3
                payloads = [*batches(SPOOL, after - 1, 2, first=first), damaged]
                with refused() as errors:
                    server.log_bytes(
                        iter([*payloads, request(prediction(after)).SerializeToString()])
                    )
                assert errors[0].code is grpc.StatusCode.INVALID_ARGUMENT
                assert errors[0].reason == "MALFORMED_MESSAGE"
                assert server.watermark(SPOOL) == after - 1, "what came before it is committed"
                server.log_bytes(batches(SPOOL, after, 1, first=after))
        finally:
            stop.set()
        sent = {of: call.result(PATIENCE) for of, call in zip(others, logging, strict=True)}
    server.stop()
    server.assert_exactly_once({SPOOL: 15, **sent})


def test_eight_devices_log_at_once(server: IngestProcess) -> None:
    spools = [spool(number) for number in range(1, 9)]
    with ThreadPoolExecutor(len(spools)) as devices:
        answers = list(devices.map(lambda of: server.log_bytes(batches(of, 1000, 32)), spools))
    assert {answer.accepted for answer in answers} == {1000}
    server.stop()
    server.assert_exactly_once(dict.fromkeys(spools, 1000))


def test_two_connections_of_one_spool_store_each_prediction_once(server: IngestProcess) -> None:
    """For example a node that reconnects while its old stream is still open."""
    with ThreadPoolExecutor(4) as connections:
        answers = list(
            connections.map(lambda _: server.log_bytes(batches(SPOOL, 600, 7)), range(4))
        )
    assert sum(answer.accepted for answer in answers) == 600
    assert sum(answer.duplicates for answer in answers) == 3 * 600
    server.stop()
    server.assert_exactly_once({SPOOL: 600})


def test_more_than_what_may_be_in_flight_arrives(start: Start) -> None:
    server = start("--max-inflight-bytes", "1000", "--group-bytes", "1500")
    spools = [spool(number) for number in range(1, 5)]
    with ThreadPoolExecutor(len(spools)) as devices:
        list(devices.map(lambda of: server.log_bytes(batches(of, 60, 10)), spools))
    server.stop()
    server.assert_exactly_once(dict.fromkeys(spools, 60))


def test_a_client_that_vanishes_leaves_everything_in_order(server: IngestProcess) -> None:
    for attempt in range(5):
        vanish = threading.Event()
        first = server.watermark(SPOOL) + 1

        def never_closed(first: int = first, vanish: threading.Event = vanish) -> Iterator[bytes]:
            yield from batches(SPOOL, first + 49, 10, first=first)
            vanish.wait(PATIENCE)

        with grpc.insecure_channel(server.address) as channel:
            method = "/sightline.ingest.v1.IngestService/PredictionLog"
            call: Any = channel.stream_unary(method)  # type: ignore[call-arg]
            running = call.future(never_closed(), timeout=PATIENCE)
            if attempt % 2:
                wait_for_watermark(server, SPOOL, first + 9)
            running.cancel()
        vanish.set()
    last = server.watermark(SPOOL)
    server.log_bytes(batches(SPOOL, last + 500, 10))
    server.stop()
    server.assert_exactly_once({SPOOL: last + 500})


def test_a_deadline_ends_a_stream_and_what_was_committed_stays(server: IngestProcess) -> None:
    ended = threading.Event()

    def slow() -> Iterator[messages.PredictionLogRequest]:
        yield request(*predictions(1, 3), head=header())
        ended.wait(PATIENCE)

    with refused() as errors:
        server.stub.PredictionLog(slow(), timeout=1)
    ended.set()
    assert errors[0].code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.watermark(SPOOL) == 3


@pytest.mark.parametrize(("decoder", "last"), [("ptars", 4), ("protobuf", 3)])
def test_the_setting_selects_the_decoder(start: Start, decoder: str, last: int) -> None:
    server = start("--decoder", decoder)
    good = request(*predictions(1, 3), head=header()).SerializeToString()
    # A group that ends under another number: protobuf refuses the message, ptars reads it.
    strange = request(prediction(4)).SerializeToString() + bytes([0x7B, 0x84, 0x01])
    if decoder == "ptars":
        assert server.log_bytes(iter([good, strange])).committed_through == last
    else:
        with refused() as errors:
            server.log_bytes(iter([good, strange]))
        assert errors[0].reason == "MALFORMED_MESSAGE"
    server.stop()
    server.assert_exactly_once({SPOOL: last})
