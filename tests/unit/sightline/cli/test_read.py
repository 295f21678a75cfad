"""`sightline stats` against servers that are slow or old."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2, ingest_service_pb2_grpc
from typer.testing import CliRunner

from sightline.cli.app import app
from sightline.cli.processes import ServiceProcess


class Counting(ingest_service_pb2_grpc.IngestServiceServicer):
    """A server that counts three predictions; `seconds`: for the details."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def GetStats(  # noqa: N802 - the contract's name
        self, request: ingest_service_pb2.GetStatsRequest, context: grpc.ServicerContext
    ) -> ingest_service_pb2.GetStatsResponse:
        if request.details:
            time.sleep(self._seconds)
        return ingest_service_pb2.GetStatsResponse(
            total_predictions=3,
            defects_detected=2,
            by_device=[ingest_pb2.CountByKey(key="gate-1", count=3, defects=2)],
        )


@contextmanager
def counting(seconds: float) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    ingest_service_pb2_grpc.add_IngestServiceServicer_to_server(Counting(seconds), server)  # type: ignore[abstract] # one method is called
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def test_counts_come_without_details_that_take_too_long() -> None:
    with counting(5.0) as target:
        words = ["stats", "--target", target, "--timeout", "1", "--json"]
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["total_predictions"] == 3
    assert "not counted within 1 s: raise --timeout" in done.stderr


def test_counts_come_where_a_rate_limit_refuses_the_details(tmp_path: Path) -> None:
    """They are a second call, which a limit of one call at once does not allow."""
    flags = ["--listen", "127.0.0.1:0", "--database", str(tmp_path / "a.duckdb")]
    limit = ["--rate-limits", "GetStats=0.01/s:1"]
    with ServiceProcess("ingest_service", [*flags, *limit]) as service:
        done = CliRunner().invoke(app, ["stats", "--target", service.address, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["total_predictions"] == 0
    assert "were not counted: " in done.stderr
    assert "RATE_LIMITED" in done.stderr


@pytest.mark.parametrize("columns", ["80", "60"])
def test_an_old_server_does_not_say_who_has_a_verdict(columns: str) -> None:
    with counting(0.0) as target:
        done = CliRunner().invoke(app, ["stats", "--target", target], env={"COLUMNS": columns})
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    lines = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert "predictions with a defect 2" in lines
    assert "gate-1 3 2" in lines
    assert max(map(len, done.stdout.splitlines())) <= int(columns)
