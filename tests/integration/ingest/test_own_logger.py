"""Tests of the statements in docs/how-to/logger.md about writing one's own logger."""

import queue
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module

import pytest
from sightline.ingest.v1 import ingest_service_pb2 as messages

from ingest_service.store.protocol import SpoolKey
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.pages import section, text
from tests.unit.ingest_service.samples import SPOOL, header, prediction, predictions, request

PAGE = "how-to/logger.md"
ID = SPOOL.spool_id


class Stream:
    """A stream that stays open between its messages."""

    def __init__(self, server: IngestProcess, pool: ThreadPoolExecutor) -> None:
        self._messages: queue.Queue[messages.PredictionLogRequest | None] = queue.Queue()
        self._answer: Future[messages.PredictionLogResponse] = pool.submit(
            lambda: server.stub.PredictionLog(self._sent(), timeout=PATIENCE)
        )

    def _sent(self) -> Iterator[messages.PredictionLogRequest]:
        while (message := self._messages.get()) is not None:
            yield message

    def send(self, message: messages.PredictionLogRequest) -> None:
        self._messages.put(message)

    def close(self) -> messages.PredictionLogResponse:
        """Half-closes, and returns the answer."""
        self._messages.put(None)
        return self._answer.result(PATIENCE)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def committed(server: IngestProcess, through: int) -> None:
    for _ in range(1000):
        if server.watermark(SPOOL) == through:
            return
    pytest.fail(f"never committed through {through}")


def test_two_streams_of_a_spool_store_nothing_twice(
    server: IngestProcess, pool: ThreadPoolExecutor
) -> None:
    one = Stream(server, pool)
    one.send(request(*predictions(1, 5), head=header()))
    committed(server, 5)
    other = server.log_messages(request(*predictions(1, 8), head=header()))
    assert (other.accepted, other.duplicates, other.committed_through) == (3, 5, 8)
    one.send(request(*predictions(6, 10)))
    answer = one.close()
    assert (answer.accepted, answer.duplicates, answer.committed_through) == (7, 3, 10)
    server.stop()
    server.assert_exactly_once({SPOOL: 10})


def test_the_stream_that_is_ahead_ends_with_a_hole(
    server: IngestProcess, pool: ThreadPoolExecutor
) -> None:
    one = Stream(server, pool)
    one.send(request(*predictions(1, 5), head=header()))
    committed(server, 5)
    with refused() as errors:
        server.log_messages(request(*predictions(7, 9), head=header()))
    assert (errors[0].reason, errors[0].metadata["expected_sequence"]) == ("SEQUENCE_HOLE", "6")
    one.send(request(*predictions(6, 9)))
    assert one.close().committed_through == 9


def test_a_silent_stream_ends_and_says_what_is_committed(
    start: Start, pool: ThreadPoolExecutor
) -> None:
    server = start("--receive-timeout-seconds", "1")
    silent = Stream(server, pool)
    silent.send(request(*predictions(1, 5), head=header()))
    with refused() as errors:
        silent._answer.result(PATIENCE)
    silent._messages.put(None)
    assert errors[0].reason == "MESSAGE_STALLED"
    assert errors[0].metadata["committed_through"] == "5"
    assert server.log_messages(request(*predictions(6, 9), head=header())).committed_through == 9


def test_the_page_calls_no_error_harmless_that_is_not_retryable(server: IngestProcess) -> None:
    table = section(PAGE, "Which codes are final")
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", table, re.MULTILINE)
    server.log_messages(request(*predictions(1, 5), head=header()))
    sent = {
        "SEQUENCE_HOLE": request(*predictions(9, 9), head=header()),
        "SEQUENCE_CONFLICT": request(prediction(1, image_id="another"), head=header()),
        "INVALID_FIELD": request(*reversed(predictions(6, 7)), head=header()),
    }
    for reason, message in sent.items():
        (final,) = [answer for codes, answer in rows if f"`{reason}`" in codes]
        with refused() as errors:
            server.log_messages(message)
        assert errors[0].reason == reason
        assert not errors[0].retryable
        assert final.startswith("for this ")


def test_the_stubs_of_the_page_can_be_imported() -> None:
    (names,) = re.findall(r"`from\s+sightline\.ingest\.v1\s+import\s+([^`]*)`", text(PAGE))
    for name in names.split(", "):
        assert import_module(f"sightline.ingest.v1.{name.strip()}")


@pytest.mark.parametrize("wrong", [ID.upper(), ID.replace("-", ""), f"{{{ID}}}"])
def test_a_spool_id_is_36_characters_in_lower_case(server: IngestProcess, wrong: str) -> None:
    with refused() as errors:
        server.log_messages(
            request(*predictions(1, 1), head=header(SpoolKey(SPOOL.device_id, wrong)))
        )
    assert [item.field for item in errors[0].violations] == ["header.spool_id"]
    assert "lower case\n   with its hyphens, 36 characters" in text(PAGE)
