"""A real `python -m ingest_service` process on a free loopback port, with its clients."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import grpc
import pytest
from sightline.ingest.v1 import ingest_service_pb2 as messages
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from ingest_service.store.protocol import SpoolKey
from servicekit.errors import SightlineError, from_rpc_error

PATIENCE = 30.0
"""Maximum time that a test waits for an expected event, s."""

_WRONG_CLOCK = """
from datetime import UTC, datetime, timedelta
import ingest_service.__main__ as service
service._now = lambda: datetime.now(UTC) + timedelta(days={days})
service.main()
"""


class IngestProcess:
    """The process of an ingest service. Each start uses the same database."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.database = folder / "test.duckdb"
        self.log = folder / "stderr.log"
        self.days_ahead = 0
        """Days by which the wall clock of later processes is ahead."""
        self._flags = flags
        self._process: subprocess.Popen[str] | None = None
        self._channel: grpc.Channel | None = None
        self.address = ""
        self.metrics_address = ""

    def start(self) -> None:
        """Start the process and waits until it is ready."""
        self._process = self.spawn()
        line = self._read_line(self._process)
        assert line, f"exit code {self._process.poll()}: {self.log.read_text()}"
        ready = json.loads(line)
        assert (ready["event"], ready["service"]) == ("ready", "ingest")
        self.address = ready["address"]
        self.metrics_address = ready.get("metrics_address", "")

    def spawn(self) -> subprocess.Popen[str]:
        """Start a process on the database without waiting for it."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
        with self.log.open("a") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, *self._program()),
                    *("--listen", "127.0.0.1:0", "--database", str(self.database)),
                    *self._flags,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env=environment,
            )

    def _program(self) -> list[str]:
        if not self.days_ahead:
            return ["-m", "ingest_service"]
        return ["-c", _WRONG_CLOCK.format(days=self.days_ahead)]

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        """PID of the running process."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code."""
        process, self._process = self._process, None
        assert process is not None
        try:
            return process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def stop(self) -> None:
        """End the process with SIGTERM, if it runs."""
        if self._process is not None:
            self.signal(signal.SIGTERM)
            assert self.wait() == 0, self.log.read_text()

    def kill(self) -> None:
        """End the process with SIGKILL, if it runs."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self.wait()

    @property
    def stub(self) -> IngestServiceStub:
        """A client of the running process."""
        if self._channel is None:
            self._channel = grpc.insecure_channel(self.address)
        return IngestServiceStub(self._channel)

    def log_messages(
        self, *requests: messages.PredictionLogRequest
    ) -> messages.PredictionLogResponse:
        """Send one stream."""
        return self.stub.PredictionLog(iter(requests), timeout=PATIENCE)

    def log_bytes(self, payloads: Iterator[bytes]) -> messages.PredictionLogResponse:
        """Send one stream of raw bytes, on a connection of its own."""
        with grpc.insecure_channel(self.address) as channel:
            call: Callable[..., messages.PredictionLogResponse] = channel.stream_unary(
                "/sightline.ingest.v1.IngestService/PredictionLog",
                request_serializer=None,
                response_deserializer=messages.PredictionLogResponse.FromString,
            )
            return call(payloads, timeout=PATIENCE)

    def watermark(self, of: SpoolKey) -> int:
        """Return the committed position of a spool, over a connection of its own."""
        return self.get_watermark(of).committed_through

    def get_watermark(self, of: SpoolKey) -> messages.GetWatermarkResponse:
        """Return the response about a spool's watermark, over a connection of its own."""
        request = messages.GetWatermarkRequest(device_id=of.device_id, spool_id=of.spool_id)
        with grpc.insecure_channel(self.address) as channel:
            return IngestServiceStub(channel).GetWatermark(request, timeout=PATIENCE)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query on the file; no process may be running."""
        assert self._process is None
        with duckdb.connect(self.database, read_only=True) as connection:
            rows: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
            return rows

    def assert_exactly_once(self, sent: dict[SpoolKey, int]) -> None:
        """Assert that the file has every sequence of each spool up to the last one sent, once."""
        sequences = self.query(
            "SELECT device_id, spool_id, count(*), count(DISTINCT sequence), max(sequence)"
            " FROM (SELECT device_id, spool_id, sequence FROM predictions UNION ALL"
            " SELECT device_id, spool_id, sequence FROM rejected_predictions)"
            " GROUP BY device_id, spool_id"
        )
        counts = {SpoolKey(device, spool): tuple(counts) for device, spool, *counts in sequences}
        assert counts == {spool: (last, last, last) for spool, last in sent.items()}
        ledger = self.query("SELECT balanced, count(*) FROM ledger GROUP BY balanced")
        assert ledger == [(True, len(sent))]

    def _read_line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
        return process.stdout.readline() if readable else ""


@contextlib.contextmanager
def refused() -> Iterator[list[SightlineError]]:
    """Assert that the call in the block fails; the list then contains its error."""
    errors: list[SightlineError] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield errors
    errors.append(from_rpc_error(caught.value))
