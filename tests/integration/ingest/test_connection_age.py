"""Connections that are ended at their age, in the middle of streams and under real nodes."""

import queue
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
from sightline.ingest.v1.ingest_service_pb2 import (
    GetWatermarkRequest,
    PredictionLogRequest,
    PredictionLogResponse,
)
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from edge.log.logger import PredictionLogger
from edge.log.stats import LoggerStats
from edge.options import LogOptions
from ingest_service.store.protocol import SpoolKey
from servicekit.errors import from_rpc_error
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


def log_over(server: IngestProcess, count: int, folder: Path) -> LoggerStats:
    """Let a node log until it has used a number of connections; return its counts."""
    seen: set[int] = set()
    with PredictionLogger(
        server.address,
        device_id="gate-2",
        spool_dir=folder,
        options=LogOptions(batch_timeout_seconds=0.002),
    ) as log:
        deadline = time.monotonic() + PATIENCE
        while len(seen) < count:
            log.log(detected())
            seen |= connections(server)
            assert time.monotonic() < deadline, seen
        assert log.flush(PATIENCE, until="committed")
        return log.stats()


def assert_stored(server: IngestProcess, of_stream: int, of_node: LoggerStats) -> None:
    assert (of_node.dropped, of_node.rejected, of_node.backlog) == ({}, 0, 0)
    server.stop()
    node = SpoolKey("gate-2", of_node.spool_id)
    server.assert_exactly_once({SPOOL: of_stream, node: of_node.logged})


def sent_again(server: IngestProcess, message: PredictionLogRequest) -> PredictionLogResponse:
    """Send a stream until it is answered before its connection ends, as devices do."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return server.log_messages(message)
        except grpc.RpcError as error:
            is_cut = from_rpc_error(error).code is grpc.StatusCode.UNAVAILABLE
            if not is_cut or time.monotonic() > deadline:
                raise


def test_streams_outlive_their_connections_age(start: Start, tmp_path: Path) -> None:
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
    stats = log_over(server, 4, tmp_path / "spool")
    assert (stats.failed, stats.retried) == (0, 0)
    assert_stored(server, 20, stats)


def test_streams_that_outlive_the_grace_are_sent_again(start: Start, tmp_path: Path) -> None:
    server = start(*AGE, "--connection-grace-seconds", "0")
    stream = Stream(server)
    stream.send(1, 10)
    with refused() as errors:
        stream.call.result()
    assert (errors[0].code, errors[0].retryable) == (grpc.StatusCode.UNAVAILABLE, True)
    stream.end()
    stream.channel.close()
    answer = sent_again(server, request(*predictions(1, 20), head=header()))
    assert (answer.committed_through, answer.accepted + answer.duplicates) == (20, 20)
    assert_stored(server, 20, log_over(server, 4, tmp_path / "spool"))
