"""`sightline tail` and `sightline sql` as processes, on a real service."""

import csv
import io
import json
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pyarrow.parquet as pq
import pytest

import sightline
from servicekit.errors import SightlineError
from tests.integration.cli.terminal import SIGHTLINE, environment
from tests.integration.cli.terminal import sightline as command
from tests.integration.ingest.process import PATIENCE, IngestProcess
from tests.unit.ingest_service.samples import (
    SPOOL,
    detection,
    header,
    prediction,
    predictions,
    request,
    spool,
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[IngestProcess]:
    """A server whose address stays the same when it is restarted."""
    made = IngestProcess(tmp_path, "--listen", f"unix:{tmp_path}/ingest.sock")
    made.start()
    yield made
    made.kill()


class Tail:
    """A running `sightline tail`."""

    def __init__(self, server: IngestProcess, *words: str) -> None:
        self.process = subprocess.Popen(
            [*SIGHTLINE, "tail", "--target", server.address, *words],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: Queue[str] = Queue()
        self.notes: Queue[str] = Queue()
        for stream, to in ((self.process.stdout, self.lines), (self.process.stderr, self.notes)):
            assert stream is not None
            threading.Thread(target=self._read, args=(stream, to), daemon=True).start()

    def _read(self, stream: Any, to: "Queue[str]") -> None:
        for line in stream:
            to.put(line.rstrip("\n"))

    def line(self) -> str:
        return self.lines.get(timeout=PATIENCE)


def following(server: IngestProcess, *words: str) -> Tail:
    """Start a tail, and log predictions of a device of its own until it shows one."""
    tail, marker, sequence = Tail(server, *words), spool(99), 0
    while tail.lines.empty():
        assert tail.process.poll() is None, tail.notes.get(timeout=1)
        sequence += 1
        row = prediction(sequence, defect_detected=True)
        server.log_messages(request(row, head=header(marker)))
        threading.Event().wait(0.05)
    final = prediction(
        sequence + 1, defect_detected=True, detections=[detection(class_name="final")]
    )
    server.log_messages(request(final, head=header(marker)))
    while "final" not in tail.line():
        pass
    return tail


def sequences(tail: Tail, count: int) -> list[int]:
    return [json.loads(tail.line())["prediction"]["sequence"] for _ in range(count)]


def test_tail_prints_the_json_of_the_other_commands(server: IngestProcess) -> None:
    tail = following(server, "--json")
    server.log_messages(request(*predictions(1, 1), head=header()))
    printed = json.loads(tail.line())
    shown = command(
        *("show", printed["device_id"], printed["spool_id"], "1"),
        *("--ingest", server.address, "--json"),
    )
    assert json.loads(shown.stdout)["prediction"] == printed
    tail.process.send_signal(signal.SIGINT)
    assert tail.process.wait(PATIENCE) == 0


def test_tail_resumes_across_restarts_and_ends_on_ctrl_c(server: IngestProcess) -> None:
    tail = following(server, "--json")
    server.log_messages(request(*predictions(1, 3), head=header()))
    assert sequences(tail, 3) == [1, 2, 3]
    for end, last in ((server.kill, 6), (server.stop, 9)):
        end()
        server.start()
        server.log_messages(request(*predictions(last - 2, last), head=header()))
        assert sequences(tail, 3) == [last - 2, last - 1, last]
    tail.process.send_signal(signal.SIGINT)
    assert tail.process.wait(PATIENCE) == 0
    assert "trying again" in tail.notes.get(timeout=PATIENCE)


def test_tail_shows_a_line_for_each_and_counts_the_rest(server: IngestProcess) -> None:
    tail = Tail(server, "--defects", "--max-per-second", "2")
    hostile = [detection(class_name="\x1b[2Jpit", confidence=0.5)] * 4
    rows = [
        prediction(n, defect_detected=n > 10, detections=hostile, source="PREDICTION_SOURCE_CLOUD")
        for n in range(1, 31)
    ]
    server.log_messages(request(*predictions(1, 1), head=header(spool(3))))
    sent = 0
    while tail.lines.empty():
        sent += 1
        server.log_messages(request(*rows, head=header(spool(100 + sent))))
        threading.Event().wait(0.1)
    number = tail.line().removeprefix("+").removesuffix(" more").replace(",", "")
    assert int(number) % 20 == 18, "2 of the 20 defects of each message are sent"
    shown = tail.line()
    assert "  gate-1" in shown
    assert shown.endswith(
        "cloud   defect  \\x1b[2Jpit 0.50, \\x1b[2Jpit 0.50, \\x1b[2Jpit 0.50, 1 more"
    )
    tail.process.send_signal(signal.SIGINT)
    assert tail.process.wait(PATIENCE) == 0


def test_tail_names_a_device_that_the_server_does_not_know(server: IngestProcess) -> None:
    tail = Tail(server, "--device", "gate-l")
    assert "the server knows no device 'gate-l'" in tail.notes.get(timeout=PATIENCE)
    tail.process.send_signal(signal.SIGINT)
    assert tail.process.wait(PATIENCE) == 0


SWALLOWED = """
import os, signal, time
from sightline.cli import app, tail

def swallow(*_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        pass

tail.note_unknown = swallow
app.main()
"""


def test_tail_ends_where_something_swallows_ctrl_c(server: IngestProcess) -> None:
    """gRPC does where a channel closes at that moment."""
    ended = subprocess.run(
        [sys.executable, "-c", SWALLOWED, "tail", "--ingest", server.address],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_tail_ends_when_its_reader_goes(server: IngestProcess) -> None:
    process = subprocess.Popen(
        [*SIGHTLINE, "tail", "--target", server.address],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    sequence = 0
    while not select.select([process.stdout], [], [], 0.05)[0]:
        sequence += 1
        server.log_messages(request(prediction(sequence), head=header()))
    process.stdout.close()
    while process.poll() is None:
        sequence += 1
        server.log_messages(request(prediction(sequence), head=header()))
        threading.Event().wait(0.05)
    assert process.returncode == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_tail_says_why_it_cannot_begin(server: IngestProcess) -> None:
    done = command("tail", "--target", "127.0.0.1:1")
    assert done.returncode == 1
    assert "sightline doctor" in done.stderr


@pytest.fixture(scope="module")
def full_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestProcess]:
    server = IngestProcess(tmp_path_factory.mktemp("sql"))
    server.start()
    rows = [prediction(n, labels={"line": "é\x1b"}) for n in range(1, 6)]
    server.log_messages(request(*rows, head=header()))
    yield server
    server.kill()


QUERY = """
    SELECT sequence, labels, captured_at, inference_seconds, sum(sequence) OVER () AS total,
        'a,"b' AS quoted, [1.5, NULL] AS list, '\\x00'::BLOB AS bytes
    FROM predictions ORDER BY sequence
"""


def test_sql_in_every_format(full_server: IngestProcess, tmp_path: Path) -> None:
    at = ("--target", full_server.address)
    shown = command("sql", "SELECT device_id, labels FROM predictions LIMIT 1", *at)
    assert shown.returncode == 0, shown.stderr
    assert SPOOL.device_id in shown.stdout
    assert "\x1b" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 100

    lines = command("sql", QUERY, "--format", "json", *at).stdout.splitlines()
    assert json.loads(lines[0]) == {
        "sequence": 1,
        "labels": {"line": "é\x1b"},
        "captured_at": "2026-11-22T11:59:59Z",
        "inference_seconds": None,
        "total": 15,
        "quoted": 'a,"b',
        "list": [1.5, None],
        "bytes": "AA==",
    }
    assert len(lines) == 5
    table = list(csv.reader(io.StringIO(command("sql", QUERY, "--format", "csv", *at).stdout)))
    assert table[0][:4] == ["sequence", "labels", "captured_at", "inference_seconds"]
    assert table[5][0] == "5"
    assert table[5][3:7] == ["", "15", 'a,"b', "[1.5, null]"]

    file = tmp_path / "rows.parquet"
    written = command("sql", QUERY, "--format", "parquet", "--to", str(file), *at)
    assert written.returncode == 0, written.stderr
    assert pq.read_table(file)["sequence"].to_pylist() == [1, 2, 3, 4, 5]
    again = command("sql", QUERY, "--format", "parquet", "--to", str(file), *at)
    assert (again.returncode, "exists already" in again.stderr) == (1, True)


def test_sql_says_what_is_wrong_and_what_was_cut_off(full_server: IngestProcess) -> None:
    at = ("--target", full_server.address)
    refused = command("sql", "DROP TABLE predictions", *at)
    assert refused.returncode == 1
    assert "sql must be one SELECT, got DROP" in refused.stderr
    endless = command("sql", "SELECT 'infinity'::TIMESTAMP AS t", "--format", "csv", *at)
    assert (endless.returncode, "cast its column" in endless.stderr) == (1, True)
    cut = command("sql", "FROM range(10)", "--max-rows", "3", "--format", "csv", *at)
    assert cut.stdout.splitlines() == ["range", "0", "1", "2"]
    assert "more than 3 rows: raise --max-rows" in cut.stderr


def test_connect_gives_tables_and_relations(full_server: IngestProcess) -> None:
    with sightline.connect(full_server.address) as log:
        table = log.sql("SELECT sequence FROM predictions ORDER BY sequence")
        assert table["sequence"].to_pylist() == [1, 2, 3, 4, 5]
        relation = log.relation("SELECT sequence FROM predictions")
        assert relation.aggregate("sum(sequence)::BIGINT").fetchall() == [(15,)]
        cut = log.query("FROM range(10)", max_rows=3)
        assert (cut.table.num_rows, cut.truncated) == (3, True)
        with pytest.raises(SightlineError) as caught:
            log.sql("FROM range(10)", max_rows=3)
        assert caught.value.reason == "RESULT_TRUNCATED"
        with pytest.raises(SightlineError) as caught:
            log.sql("SELECT nothing")
        assert caught.value.reason == "SQL_INVALID"


def test_connect_uses_the_settings_of_a_node(
    full_server: IngestProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_EDGE_INGEST_TARGET", full_server.address)
    with sightline.connect() as log:
        assert log.sql("SELECT 1 AS one").to_pylist() == [{"one": 1}]
