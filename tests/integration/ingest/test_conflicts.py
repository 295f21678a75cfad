"""Item 13: a sequence that is reused for another prediction, with a real service."""

import urllib.request

import grpc
import pytest

from servicekit.errors import SightlineError, from_rpc_error
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import IngestProcess
from tests.unit.ingest_service.samples import SPOOL, header, prediction, predictions, request

ONE, TWO = (f"{number:08x}-0000-4000-8000-000000000000" for number in (1, 2))


def refused(server: IngestProcess, *parts: object, generation: str = "") -> SightlineError:
    with pytest.raises(grpc.RpcError) as caught:
        server.log_messages(request(*parts, head=header(generation=generation)))  # type: ignore[arg-type]
    return from_rpc_error(caught.value)


def test_a_reused_sequence_is_refused_and_counted(start: Start) -> None:
    server = start("--metrics-listen", "127.0.0.1:0")
    server.log_messages(request(*predictions(1, 5), head=header(generation=ONE)))
    other = prediction(5, image_id="other")
    error = refused(server, other, prediction(6), generation=ONE)
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "SEQUENCE_CONFLICT")
    assert (error.metadata["sequence"], error.retryable) == ("5", False)
    assert refused(server, *predictions(5, 6), generation=TWO).metadata["kind"] == "generation"
    answer = server.log_messages(request(*predictions(4, 6), head=header(generation=ONE)))
    assert (answer.accepted, answer.duplicates) == (1, 2)
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        text = page.read().decode()
    for kind in ("content", "generation"):
        assert f'sightline_ingest_sequence_conflicts_total{{kind="{kind}"}} 1.0' in text


def test_a_logger_that_restarts_at_1_is_refused_after_a_restart_too(
    server: IngestProcess,
) -> None:
    server.log_messages(request(*predictions(1, 9), head=header()))
    server.kill()
    server.start()
    error = refused(server, prediction(1, image_id="after the restart"))
    assert (error.reason, error.metadata["sequence"]) == ("SEQUENCE_CONFLICT", "1")
    server.stop()
    rows = server.query("SELECT count(*), count(DISTINCT image_id) FROM predictions")
    assert rows == [(9, 9)]


def test_nor_is_one_whose_first_stream_was_a_header_alone(server: IngestProcess) -> None:
    """The header creates the row of the spool before the first prediction."""
    server.log_messages(request(head=header()))
    server.log_messages(request(*predictions(1, 9), head=header()))
    server.kill()
    server.start()
    error = refused(server, prediction(1, image_id="after the restart"))
    assert (error.reason, error.metadata["sequence"]) == ("SEQUENCE_CONFLICT", "1")


def test_the_watermark_tells_the_generations(server: IngestProcess) -> None:
    server.log_messages(request(*predictions(1, 2), head=header()))
    server.log_messages(request(*predictions(3, 5), head=header(generation=ONE)))
    server.log_messages(request(*predictions(6, 6), head=header(generation=TWO)))
    answer = server.get_watermark(SPOOL)
    assert [(run.id, run.after_sequence) for run in answer.generations] == [
        ("", 0),
        (ONE, 2),
        (TWO, 5),
    ]


def test_a_generation_is_a_uuid(shared_server: IngestProcess) -> None:
    error = refused(shared_server, prediction(1), generation="first")
    assert [violation.field for violation in error.violations] == ["header.generation"]
