"""Connections that are ended at their age, in the middle of streams and under real nodes."""

import queue
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from sightline.ingest.v1.ingest_service_pb2 import GetWatermarkRequest, PredictionLogRequest
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from ingest_service.store.protocol import SpoolKey
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.unit.edge.samples import prediction as detected
from tests.unit.ingest_service.samples import SPOOL, header, predictions, request

WATERMARK = GetWatermarkRequest(device_id=SPOOL.device_id, spool_id=SPOOL.spool_id)
AGE = ("--max-connection-age-seconds", "0.2")


def connections(server: IngestProcess) -> set[int]:
    """Return the ports of the clients that are connected."""
    return {
        connection.raddr.port
        for connection in psutil.Process(server.pid).net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED
    }


class Stream:
    """A stream of one connection whose messages a test sends one by one."""

    def __init__(self, server: IngestProcess) -> None:
        self.channel = grpc.insecure_channel(server.address)
        self.stub = IngestServiceStub(self.channel)
        self._messages: queue.Queue[PredictionLogRequest | None] = queue.Queue()
        self.call = self.stub.PredictionLog.future(self._requests(), timeout=PATIENCE)

    def send(self, first: int, last: int) -> None:
        head = header() if first == 1 else None
        self._messages.put(request(*predictions(first, last), head=head))

    def end(self) -> None:
        self._messages.put(None)

    def _requests(self) -> Iterator[PredictionLogRequest]:
        while (message := self._messages.get()) is not None:
            yield message


def wait_for(server: IngestProcess, committed: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.watermark(SPOOL) < committed:
        assert time.monotonic() < deadline, f"{committed} is never committed"
        time.sleep(0.01)


def test_a_stream_outlives_its_connections_age(start: Start) -> None:
    server = start(*AGE)
    stream = Stream(server)
    stream.send(1, 10)
    wait_for(server, 10)
    before = connections(server)
    deadline = time.monotonic() + PATIENCE
    while connections(server) <= before:  # from its age on, calls go over a new connection
        stream.stub.GetWatermark(WATERMARK, timeout=PATIENCE)
        assert time.monotonic() < deadline, "the connection is never replaced"
    stream.send(11, 20)
    stream.end()
    answer = stream.call.result()
    assert (answer.committed_through, answer.accepted, answer.duplicates) == (20, 20, 0)
    stream.channel.close()
    server.stop()
    server.assert_exactly_once({SPOOL: 20})


def test_a_stream_that_outlives_the_grace_is_sent_again(start: Start) -> None:
    server = start(*AGE, "--max-connection-age-grace-seconds", "0.1")
    stream = Stream(server)
    stream.send(1, 10)
    with refused() as errors:
        stream.call.result()
    assert (errors[0].code, errors[0].retryable) == (grpc.StatusCode.UNAVAILABLE, True)
    stream.end()
    stream.channel.close()
    committed = server.watermark(SPOOL)
    assert committed in (0, 10)
    answer = server.log_messages(request(*predictions(1, 20), head=header()))
    assert (answer.committed_through, answer.duplicates) == (20, committed)
    server.stop()
    server.assert_exactly_once({SPOOL: 20})


@pytest.mark.parametrize("grace", [(), ("--max-connection-age-grace-seconds", "0")])
def test_nodes_log_across_many_connections(
    start: Start, tmp_path: Path, grace: tuple[str, ...]
) -> None:
    server = start(*AGE, *grace)
    seen: set[int] = set()
    with PredictionLogger(
        server.address,
        device_id="gate-1",
        spool_dir=tmp_path / "spool",
        options=LogOptions(batch_timeout_seconds=0.002),
    ) as log:
        deadline = time.monotonic() + PATIENCE
        while len(seen) < 4:
            log.log(detected())
            seen |= connections(server)
            assert time.monotonic() < deadline, seen
        assert log.flush(PATIENCE, until="committed")
        stats = log.stats()
    assert (stats.dropped, stats.rejected, stats.backlog) == ({}, 0, 0)
    if not grace:  # nothing had to be sent again, and nobody was told of a failure
        assert (stats.failed, stats.retried) == (0, 0)
    server.stop()
    server.assert_exactly_once({SpoolKey("gate-1", stats.spool_id): stats.logged})
