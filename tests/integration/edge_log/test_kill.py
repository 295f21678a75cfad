"""Node and server are killed again and again, and every spooled prediction is stored once."""

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.log.logger import LogOptions, PredictionLogger
from tests.integration.edge_log.ingest import Ingest, serving
from tests.unit.edge.samples import eventually

NODE = Path(__file__).with_name("node.py")


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


@contextmanager
def node(ingest: Ingest, folder: Path, name: str) -> Iterator[Path]:
    """A node that is killed at the end; yields its ledger once something is in it."""
    ledger = folder / f"{name}.ledger"
    with (folder / "node.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(NODE), ingest.target, str(folder / "spool"), name, str(ledger)],
            stderr=log,
        )
    try:
        assert eventually(lambda: ledger.exists() and ledger.stat().st_size > 0, 60), (
            folder / "node.log"
        ).read_text()
        yield ledger
        assert process.poll() is None, (folder / "node.log").read_text()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def spooled(ledger: Path) -> int:
    """How many predictions a node says it has spooled; its last line may be cut off."""
    lines = ledger.read_text().split("\n")[:-1]
    return int(lines[-1])


def drain(ingest: Ingest, folder: Path) -> None:
    options = LogOptions(batch_timeout_seconds=0.0)
    log = PredictionLogger(
        ingest.target, device_id="gate-1", spool_dir=folder / "spool", options=options
    )
    with log:
        assert log.flush(60, until="committed"), log.stats()
        assert log.stats().damaged_spools == 0


def audit(ingest: Ingest, confirmed: dict[str, int]) -> None:
    """Checks, in the stopped server's database, that nothing is missing and nothing is twice."""
    assert ingest.query("SELECT DISTINCT balanced FROM ledger") == [(True,)]
    assert ingest.query("SELECT count(*) FROM gaps") == [(0,)]
    assert ingest.query("SELECT count(*) FROM rejected_predictions") == [(0,)]
    assert (
        ingest.query(
            "SELECT image_id, count(*) FROM predictions GROUP BY image_id HAVING count(*) > 1"
        )
        == []
    )
    assert ingest.query(
        "SELECT count(*) = max(sequence) AND count(DISTINCT sequence) = count(*) FROM predictions"
    ) == [(True,)]
    stored = {row[0] for row in ingest.query("SELECT image_id FROM predictions")}
    for name, count in confirmed.items():
        assert not {f"{name}/{number}" for number in range(count)} - stored


LONG = [pytest.mark.soak, pytest.mark.timeout(7200)]


@pytest.mark.parametrize(("seed", "lives"), [(1, 5), (2, 5), pytest.param(3, 500, marks=LONG)])
def test_nothing_spooled_is_lost_and_nothing_is_twice(
    tmp_path: Path, seed: int, lives: int
) -> None:
    chance, confirmed = random.Random(seed), dict[str, int]()
    with serving(tmp_path / "ingest") as ingest:
        for life in range(lives):
            with node(ingest, tmp_path, f"life{life}") as ledger:
                pause(chance.uniform(0.0, 0.8))
                if chance.random() < 0.6:
                    ingest.kill()
                    pause(chance.uniform(0.0, 0.3))
                    if chance.random() < 0.7:
                        ingest.start()
                        pause(chance.uniform(0.0, 0.8))
            confirmed[ledger.stem] = spooled(ledger)
            if ingest._process is None:
                ingest.start()
        drain(ingest, tmp_path)
        ingest.stop()
        audit(ingest, confirmed)
    assert sum(confirmed.values()) > 100
