"""Item 19 of issue 11: a service without memory makes devices resend."""

from sightline.ingest.v1 import ingest_service_pb2 as messages

from tests.integration.ingest.process import IngestProcess, refused
from tests.unit.ingest_service.samples import SPOOL, header, predictions, request
from tests.unit.servicekit.scarce import headroom

MIB = 1 << 20
TINY = b"\x12\x00" * 1_500_000
"""As many empty predictions: each takes a hundred times as much in memory as on the wire."""


def test_a_header_that_cannot_be_parsed_for_want_of_memory_is_to_be_sent_again(
    server: IngestProcess,
) -> None:
    good = request(*predictions(1, 3), head=header())
    server.log_messages(good)
    bomb = messages.PredictionLogRequest(header=header()).SerializeToString() + TINY
    headroom(server.pid, 60 * MIB)
    with refused() as errors:
        server.log_bytes(iter([bomb]))
    (error,) = errors
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
    assert error.retryable
    assert error.retry_after is not None
    headroom(server.pid, None)
    with refused() as errors:
        server.log_bytes(iter([bomb]))
    assert errors[0].reason == "INVALID_FIELD"  # more than 10 000: what it really is
    assert server.log_messages(good).duplicates == 3
    assert server.watermark(SPOOL) == 3
