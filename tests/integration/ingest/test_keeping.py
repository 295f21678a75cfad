"""Retention and export of a running service, and the commands for a stopped one."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from ingest_service.store.duckdb.file_store import DuckDBStore
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE
from tests.unit.ingest_service.samples import (
    SPOOL,
    gap,
    header,
    message,
    prediction,
    predictions,
    request,
    spool,
    timestamp,
)
from tests.unit.ingest_service.store_conformance import commit


def eventually(check: Callable[[], bool]) -> None:
    """Wait until a condition holds, or fail."""
    end = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def log_days_ago(database: Path, days: float) -> None:
    """Commit eight predictions, a rejected one and a gap, with times of some days ago."""
    store = DuckDBStore(database)
    received = datetime.now(UTC) - timedelta(days=days)
    captured = timestamp(received)
    parts = [prediction(sequence, captured_at=captured) for sequence in range(1, 9)]
    parts.append(prediction(9, captured_at=captured, model_name=""))
    commit(store, message(*parts, gap(10, 10)), now=lambda: received)
    store.close()


def confirmed() -> list[str]:
    """Return the operator's confirmation that eight days have passed since the last commit."""
    return ["--retain-confirm-until", (datetime.now(UTC) + timedelta(days=1)).isoformat()]


def rows_in(folder: Path) -> list[tuple[str, int]]:
    if not list(folder.glob("day=*/device_id=*/*.parquet")):
        return []
    query = f"SELECT device_id, sequence FROM '{folder}/*/*/*.parquet' ORDER BY ALL"
    with duckdb.connect() as connection:
        rows: list[tuple[str, int]] = connection.execute(query).fetchall()
        return rows


def test_old_predictions_are_deleted_and_positions_are_not(start: Start, tmp_path: Path) -> None:
    log_days_ago(tmp_path / "test.duckdb", 8)
    server = start("--retain-days", "7", *confirmed())
    server.log_messages(request(*predictions(11, 12), head=header()))
    assert server.watermark(SPOOL) == 12
    eventually(lambda: "deleted 8 predictions" in server.log.read_text())
    server.stop()
    log = server.log.read_text()
    assert server.query("SELECT sequence FROM predictions ORDER BY 1") == [(11,), (12,)], log
    assert server.query("SELECT accepted, rejected, expired, balanced FROM ledger") == [
        (10, 1, 9, True)
    ]


def test_a_service_whose_clock_is_60_days_ahead_deletes_nothing(
    start: Start, tmp_path: Path
) -> None:
    server = start("--retain-days", "30")
    server.log_messages(request(*predictions(1, 5), head=header()))
    server.stop()
    server.days_ahead = 60
    server.start()
    # The new commits have a wrong time, and must not confirm it.
    server.log_messages(request(*predictions(6, 9), head=header()))
    eventually(lambda: "--retain-confirm-until" in server.log.read_text())
    server.stop()
    server.start()  # a second start finds rows of the wrong time
    server.stop()
    assert server.query("SELECT count(*) FROM predictions") == [(9,)]
    server.days_ahead = 0
    server.start()
    server.log_messages(request(*predictions(10, 10), head=header()))
    server.stop()
    assert "received_at stays at" in server.log.read_text()
    assert server.query("SELECT accepted, expired, balanced FROM ledger") == [(10, 0, True)]


def test_a_service_whose_clock_is_behind_rejects_nothing_that_is_good(
    start: Start,
) -> None:
    server = start()
    server.stop()
    server.days_ahead = -3
    server.start()
    now = datetime.now(UTC)
    sent = [prediction(sequence, captured_at=timestamp(now)) for sequence in range(1, 6)]
    answer = server.log_messages(request(*sent, head=header(device_time=timestamp(now))))
    assert (answer.accepted, answer.rejected) == (5, 0)
    # The device did not send its clock: the command readmits the rows.
    answer = server.log_messages(request(*sent, head=header(spool(2))))
    assert (answer.accepted, answer.rejected) == (0, 5)
    server.stop()
    command = [sys.executable, "-c", "from sightline.cli.app import main; main()", "readmit"]
    command += ["--database", str(server.database)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert (answer["readmitted"], answer["kept"], answer["dry_run"]) == (5, {}, False)
    server.assert_exactly_once({SPOOL: 5, spool(2): 5})
    assert server.query("SELECT count(*) FROM predictions") == [(10,)]


def test_nothing_is_deleted_before_it_is_exported(start: Start, tmp_path: Path) -> None:
    log_days_ago(tmp_path / "test.duckdb", 8)
    folder = tmp_path / "out"
    server = start("--retain-days", "7", "--export-dir", str(folder), *confirmed())
    eventually(lambda: "deleted 8 predictions" in server.log.read_text())
    server.stop()
    assert rows_in(folder) == [(SPOOL.device_id, sequence) for sequence in range(1, 9)]
    assert server.query("SELECT count(*) FROM predictions") == [(0,)]


def test_a_stopped_database_is_exported_by_a_command(start: Start, tmp_path: Path) -> None:
    server = start()
    server.log_messages(request(*predictions(1, 5), head=header()))
    folder = tmp_path / "out"
    command = [sys.executable, "-c", "from sightline.cli.app import main; main()", "export"]
    command += ["--database", str(server.database), "--to", str(folder)]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "another process has it open" in refused.stderr
    server.stop()
    for files in (1, 0):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(done.stdout) == {"files": files, "folder": str(folder)}
    assert rows_in(folder) == [(SPOOL.device_id, sequence) for sequence in range(1, 6)]


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from sightline.cli.app import main; main()", "export"]
    command += ["--database", str(tmp_path / "no.duckdb"), "--to", str(tmp_path / "out")]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (refused.returncode, "there is no file" in refused.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []
