"""Test of a Node program with @grpc/grpc-js that streams predictions into PredictionLog."""

import json
import subprocess
import uuid
from pathlib import Path

import duckdb

from sightline.cli.processes import ServiceProcess
from tests.compat.conftest import ROOT

SCRIPT = Path(__file__).parent / "node/log_predictions.js"
PREDICTIONS = 100


def test_node_streams_predictions(node: str, tmp_path: Path) -> None:
    database = tmp_path / "node.duckdb"
    flags = ["--listen", "127.0.0.1:0", "--database", str(database)]
    spool = str(uuid.uuid4())
    with ServiceProcess("ingest_service", flags) as ingest:
        command = [node, str(SCRIPT), ingest.address, str(ROOT / "proto"), "gate-node", spool]
        first, again = (stream(command) for _ in range(2))
    assert first["committed_through"] == again["committed_through"] == str(PREDICTIONS)
    assert (first["accepted"], first["duplicates"]) == (str(PREDICTIONS), "0")
    assert (again["accepted"], again["duplicates"]) == ("0", str(PREDICTIONS))
    with duckdb.connect(str(database), read_only=True) as connection:
        rows = connection.execute(
            "SELECT count(*), count(DISTINCT sequence), min(sequence), max(sequence), "
            "bool_and(detections[1].class_name = 'scratch') "
            "FROM predictions WHERE device_id = 'gate-node'"
        ).fetchone()
    assert rows == (PREDICTIONS, PREDICTIONS, 1, PREDICTIONS, True)


def stream(command: list[str]) -> dict[str, str]:
    done = subprocess.run([*command, str(PREDICTIONS)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer
