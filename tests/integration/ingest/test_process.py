"""Start, crash, drain and refused starts of the process."""

import json
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sightline.ingest.v1 import ingest_service_pb2 as messages

from ingest_service.store.protocol import SpoolKey
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.integration.ingest.test_logging import batches, wait_for_watermark
from tests.unit.ingest_service.samples import SPOOL, header, predictions, request, spool


def test_it_is_live_and_ready(server: IngestProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        for name in ("", "sightline.ingest.v1.IngestService"):
            assert _check(channel, name) == health_pb2.HealthCheckResponse.SERVING


def test_a_killed_server_has_what_it_confirmed_and_each_prediction_once(
    server: IngestProcess,
) -> None:
    """Devices keep logging while the server is killed and restarted repeatedly."""
    spools = [spool(number) for number in range(1, 5)]
    last, kills, chance = 2000, 4, random.Random(11)
    confirmed = dict.fromkeys(spools, 0)
    deadline = time.monotonic() + 2 * PATIENCE

    def device(of: SpoolKey) -> None:
        while confirmed[of] < last:
            assert time.monotonic() < deadline, f"{of} stands at {confirmed[of]}"
            try:
                through = server.watermark(of)
                assert through >= confirmed[of], "what was confirmed is lost"
                end = min(last, through + 100)
                answer = server.log_bytes(batches(of, end, 16, first=through + 1))
                confirmed[of] = answer.committed_through
            except grpc.RpcError:  # killed under the call, or not back yet
                time.sleep(0.02)

    with ThreadPoolExecutor(len(spools)) as devices:
        running = [devices.submit(device, of) for of in spools]
        for kill in range(kills):
            part = kill * last * len(spools) / (kills + 1)
            while sum(confirmed.values()) < part and not any(task.done() for task in running):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.02))
            assert sum(confirmed.values()) < last * len(spools), "killed too late to mean anything"
            server.kill()
            server.start()
        for task in running:
            task.result()
    server.stop()
    server.assert_exactly_once(dict.fromkeys(spools, last))


def test_sigterm_lets_streams_finish_and_exits_0(server: IngestProcess) -> None:
    sent, finish = threading.Event(), threading.Event()

    def open_stream() -> Iterator[messages.PredictionLogRequest]:
        yield request(*predictions(1, 3), head=header())
        sent.set()
        finish.wait(PATIENCE)
        yield request(*predictions(4, 5))

    with ThreadPoolExecutor(1) as client:
        answer = client.submit(server.stub.PredictionLog, open_stream(), timeout=PATIENCE)
        assert sent.wait(PATIENCE)
        wait_for_watermark(server, SPOOL, 3)
        server.signal(signal.SIGTERM)
        wait_until_refused(server)
        finish.set()
        assert answer.result(PATIENCE).committed_through == 5
    assert server.wait() == 0
    server.assert_exactly_once({SPOOL: 5})
    assert not server.database.with_suffix(".duckdb.wal").exists(), "all is in the file"


def test_sigterm_cuts_a_stream_that_does_not_end_once_all_it_sent_is_committed(
    server: IngestProcess,
) -> None:
    end = threading.Event()

    def endless() -> Iterator[messages.PredictionLogRequest]:
        yield request(*predictions(1, 3), head=header())
        end.wait(PATIENCE)

    with ThreadPoolExecutor(1) as client:
        answer = client.submit(server.stub.PredictionLog, endless(), timeout=PATIENCE)
        wait_for_watermark(server, SPOOL, 3)
        begun = time.monotonic()
        server.signal(signal.SIGTERM)
        with refused() as errors:
            answer.result(PATIENCE)
        end.set()
    assert errors[0].code is grpc.StatusCode.UNAVAILABLE
    assert errors[0].reason == "DRAINING"
    assert server.wait() == 0
    assert time.monotonic() - begun < 8, "well within the grace of 10 s"
    server.assert_exactly_once({SPOOL: 3})


def _check(channel: grpc.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
    return int(answer.status)


def wait_until_refused(server: IngestProcess) -> None:
    """Wait until the server refuses new calls."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with grpc.insecure_channel(server.address) as channel:
            try:
                _check(channel, "")
            except grpc.RpcError:
                return
        time.sleep(0.01)
    raise AssertionError("still serving")


def outcome(process: subprocess.Popen[str], server: IngestProcess) -> tuple[int, str]:
    """Return the exit code and the output of a process that cannot start."""
    try:
        assert process.wait(PATIENCE) is not None
        assert process.stdout is not None
        assert process.stdout.read() == "", "it must not say ready"
    finally:
        process.kill()
        process.communicate()
    return process.returncode, server.log.read_text()


def test_a_second_process_on_the_same_file_is_refused(server: IngestProcess) -> None:
    code, output = outcome(server.spawn(), server)
    assert code == 1
    assert "another process has it open" in output
    assert str(server.database) in output
    server.log_messages(request(*predictions(1, 3), head=header()))
    server.stop()
    server.assert_exactly_once({SPOOL: 3})


def test_a_database_that_cannot_be_made_is_refused_in_one_sentence(tmp_path: Path) -> None:
    server = IngestProcess(tmp_path)
    server.database = tmp_path / "no" / "such" / "folder.duckdb"
    code, output = outcome(server.spawn(), server)
    assert code == 1
    assert "database" in output
    assert "Traceback" not in output


def test_a_bad_setting_is_refused_by_name(tmp_path: Path) -> None:
    server = IngestProcess(tmp_path, "--group-wait-ms", "21")
    code, output = outcome(server.spawn(), server)
    assert code == 2
    assert "group_wait_ms" in output
    assert "20" in output


def test_log_lines_are_json(server: IngestProcess) -> None:
    server.stop()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {line["service"] for line in lines} == {"ingest"}


def test_the_file_can_be_read_by_anyone_with_duckdb_when_it_is_closed(
    server: IngestProcess,
) -> None:
    server.log_messages(request(*predictions(1, 3), head=header()))
    server.stop()
    with duckdb.connect(server.database, read_only=True) as connection:
        rows = connection.execute(
            "SELECT device_id, unnest(detections).class_name FROM predictions"
        ).fetchall()
    assert rows == [("gate-1", "scratch")] * 3
