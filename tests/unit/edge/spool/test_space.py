"""Space: given back after a backlog has drained, and waited for where there is none."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from edge.records import Prediction
from edge.spool import caps
from edge.spool.caps import SpoolLimits
from edge.spool.entries import GapReason, Row
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.samples import eventually
from tests.unit.edge.spool.test_spool import Opened, body, opened, sequences

FEW_BYTES = 10 << 20


@pytest.fixture
def ingest() -> Iterator[FakeIngest]:
    with FakeIngest() as server:
        yield server


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def drain(rig: Opened, *, flowing: bool) -> None:
    """Does what shipper and writer do, second by second."""
    position = 0
    while position < rig.spool.identity.last - 100:
        position = rig.spool.read(rig.id, position, 8192, 4 << 20)[-1].sequence
        rig.spool.acknowledge(rig.id, position)
        if flowing:
            rig.spool.append([body()] * 10)
        rig.spool.maintain()


@pytest.mark.slow
@pytest.mark.parametrize("flowing", [False, True])
def test_a_backlog_that_has_drained_leaves_its_space(tmp_path: Path, flowing: bool) -> None:
    rig = opened(tmp_path)
    for _ in range(100):
        rig.spool.append([body("x" * 10_000)] * 100)
    assert on_disk(tmp_path) > 100 << 20
    peak = on_disk(tmp_path)
    drain(rig, flowing=flowing)
    for _ in range(5):
        if flowing:
            rig.spool.append([body()] * 10)
        rig.spool.maintain()
    assert on_disk(tmp_path) < FEW_BYTES
    assert peak < 120 << 20
    rig.spool.close()
    assert on_disk(tmp_path) < FEW_BYTES
    rig = opened(tmp_path)
    assert all(isinstance(n, int) for n in sequences(rig, rig.spool.identity.acknowledged))
    rig.spool.close()


@pytest.mark.slow
def test_a_full_disk_costs_predictions_which_are_declared(
    tmp_path: Path, ingest: FakeIngest
) -> None:
    ingest.stop()
    options = LogOptions(batch_timeout_seconds=0.0, memory_predictions=100)
    log = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=tmp_path, options=options)
    pipeline = log._pipeline
    pipeline._writer._patience_seconds = 0.3
    log(Prediction("first", "m"), wait="spooled", timeout=20)
    assert pipeline._spool is not None
    db = pipeline._spool._file._db
    db.execute("PRAGMA max_page_count = 8")
    for number in range(2000):
        log(Prediction(f"i{number}", "m" * 250))
    assert eventually(lambda: "spool_write_failed" in log.stats().dropped, 20)
    assert log.stats().last_error == "database or disk is full"
    log(Prediction("meanwhile", "m"))
    db.execute("PRAGMA max_page_count = 1000000")
    assert eventually(lambda: log.stats().last_error != "database or disk is full", 20)
    log(Prediction("last", "m"), wait="spooled", timeout=20)
    ingest.start()
    assert not log.flush(60, until="committed"), "True would say that nothing was given up"
    assert log.flush(60, until="committed")
    stats = log.stats()
    log.close()
    stored = ingest.only()
    stored.check()
    assert {"first", "last"} < set(ingest.images())
    lost = sum(last - first + 1 for first, last, _ in stored.gaps)
    assert len(ingest.images()) + lost == stats.logged == 2003
    assert lost == sum(stats.dropped.values())
    assert GapReason.SPOOL_WRITE_FAILED in {reason for _, _, reason in stored.gaps}


NODE = """
import json, resource, sys, time
from sightline import LogOptions, Prediction, PredictionLogger
options = LogOptions(memory_predictions=100, disk_reserve_bytes=0)
log = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=sys.argv[1], options=options)
log._pipeline._writer._patience_seconds = 0.3
log(Prediction("first", "m"), wait="spooled", timeout=20)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
slowest = 0.0
for number in range(3000):
    begun = time.monotonic()
    log(Prediction(f"i{number}", "m" * 250))
    slowest = max(slowest, time.monotonic() - begun)
    time.sleep(0.0002)
failed = log.stats().last_error
while "spool_write_failed" not in log.stats().dropped:
    time.sleep(0.05)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log(Prediction("last", "m"), wait="spooled", timeout=20)
stats = log.stats()
print(json.dumps([failed, stats.logged, dict(stats.dropped), slowest]))
log.close(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100_000, 300_000])
def test_a_process_that_may_not_write_any_more_goes_on(tmp_path: Path, limit: int) -> None:
    """The kernel refuses to let a file grow, in the middle of whatever SQLite writes."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if hard != resource.RLIM_INFINITY:
        pytest.skip("this process may not write big files itself")
    done = subprocess.run(
        [sys.executable, "-c", NODE, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failed, logged, dropped, slowest = json.loads(done.stdout)
    assert failed
    assert slowest < 1.0
    rig = opened(tmp_path)
    entries = rig.spool.read(rig.id, 0, 1 << 20, 1 << 30)
    rig.spool.close()
    rows = sum(isinstance(entry, Row) for entry in entries)
    assert rows + sum(dropped.values()) == logged == rig.spool.identity.last == 3002
    assert rig.lost == []
    assert rig.spool.damaged == 0


def test_at_the_reserve_no_more_is_given_up_than_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space that is given back there goes to others, and would have to be evicted for again."""
    monkeypatch.setattr(caps, "_SPARE_BYTES", 64 << 10)
    monkeypatch.setattr(caps, "_SHRINK_PAGES", 64)
    rig = opened(tmp_path, SpoolLimits(1 << 40, 0.0, 1 << 60))  # no disk has so much to spare
    monkeypatch.setattr(caps, "_SMALLEST_CAP", 8 << 20)
    for _ in range(80):
        rig.spool.append([body("x" * 10_000)] * 10)
    monkeypatch.setattr(caps, "_SMALLEST_CAP", 1 << 20)
    kept = rig.spool.identity.pending - sum(lost.count for lost in rig.lost)
    assert kept > 700
    for _ in range(100):
        rig.spool.append([body("x" * 10_000)])
        rig.spool.maintain()
    remaining = rig.spool.identity.pending - sum(lost.count for lost in rig.lost)
    assert remaining > kept * 0.9
    rig.spool.close()
