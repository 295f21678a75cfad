"""The demo itself, with the ingest service killed in the middle of it."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import duckdb

ROOT = Path(__file__).parents[2]
FRAMES = 120


def run_demo(folder: Path, *flags: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--folder", str(folder), *flags],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    last: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return last


def test_sigkill_of_the_ingest_service_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    result = run_demo(tmp_path, "--frames", str(FRAMES), "--fps", "20", "--kill-ingest")
    assert result["frames"] == result["logged"] == result["committed"] == FRAMES
    assert (result["lost"], result["duplicates"]) == (0, 0)
    assert result["from_cloud"] == 10  # every tenth frame, but for the outage
    assert result["from_device"] == FRAMES - 10
    with duckdb.connect(str(result["database"]), read_only=True) as connection:
        rows = connection.execute("SELECT sequence FROM predictions ORDER BY sequence").fetchall()
        reasons = connection.execute(
            "SELECT DISTINCT source, cloud_reason FROM predictions ORDER BY source"
        ).fetchall()
    assert rows == [(sequence,) for sequence in range(1, FRAMES + 1)]
    assert reasons == [("cloud", "device_failed"), ("device", None)]


def test_a_demo_that_stays_shows_itself_in_the_console(tmp_path: Path) -> None:
    words = ["--frames", "12", "--fps", "50", "--folder", str(tmp_path), "--stay"]
    with subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        try:
            assert demo.stdout is not None
            address = next(
                json.loads(line)["console"] for line in demo.stdout if line.startswith('{"console"')
            )
            with urllib.request.urlopen(f"{address}/stats", timeout=20) as answer:
                assert json.load(answer)["total_predictions"] >= 12
            demo.send_signal(signal.SIGINT)
            _, said = demo.communicate(timeout=60)
        finally:
            demo.kill()
        assert demo.returncode == 0, said
