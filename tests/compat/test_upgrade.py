"""The ingest service of the last release and the present one, one after the other on one file.

`ingest_of_schema_2.duckdb.gz` is a file of that service (commit e75b19d): two spools, a rejected
prediction and a gap. Where this clone has that commit, its service runs as well.
"""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import grpc
import pytest
from sightline.ingest.v1.ingest_service_pb2 import GetStatsRequest
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.migrations import VERSIONS
from servicekit.terminal import CommandError
from sightline import Prediction, PredictionLogger
from tests.compat.conftest import ROOT
from tests.faults.auditor import audit
from tests.faults.ledger import read_lives
from tests.faults.lives import STOP, log_until_told
from tests.faults.nodes import Node, running
from tests.faults.world import World, running_world
from tests.integration.ingest.process import IngestProcess
from tests.unit.edge.samples import eventually
from tests.unit.ingest_service import samples

LAST_RELEASE = "e75b19db038eb3bb56d6175e0e3885b4d6aef2e2"
FILE = Path(__file__).parent / "ingest_of_schema_2.duckdb.gz"
NOW = len(VERSIONS)
POSED = "detections[1].class_name = 'posed'"
"""Condition on the predictions that were logged with keypoints."""
REFUSAL = f"its schema has version {NOW}, and this Sightline knows up to 2"
SOME = 100
"""Predictions to wait for: several commits."""


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables with which a service is that of the last release."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", LAST_RELEASE], check=False, capture_output=True
    )
    if archive.returncode:
        pytest.skip("this clone does not have the commit of the last release")
    folder = tmp_path_factory.mktemp("last-release")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    # Python looks for modules in the current folder, the present one's, unless the path is safe.
    return {"PYTHONPATH": f"{folder}:{folder / 'generated'}", "PYTHONSAFEPATH": "1"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path / "world", 1) as made:
        yield made


def stored(world: World) -> int:
    """Return the number of predictions that the running service has."""
    with grpc.insecure_channel(world.ingest.target) as channel:
        stats = IngestServiceStub(channel).GetStats(GetStatsRequest(), timeout=30)
    return stats.total_predictions


def wait_for_more(world: World) -> None:
    before = stored(world)
    assert eventually(lambda: stored(world) >= before + SOME, 60)


def rows(world: World, condition: str, *values: int) -> int:
    """Return the number of stored predictions that fulfil a condition; no service may run."""
    sql = f"SELECT count(*) FROM predictions WHERE {condition}"
    with duckdb.connect(str(world.ingest.database), read_only=True) as database:
        (count,) = database.execute(sql, values).fetchone() or (0,)
    return int(count)


def end(world: World, node: Node) -> None:
    """Let the node end, which it does when everything is committed."""
    (world.folder / STOP).touch()
    node.wait()


def test_a_file_of_the_last_release_is_migrated_and_goes_on(tmp_path: Path) -> None:
    server = IngestProcess(tmp_path)
    server.database.write_bytes(gzip.decompress(FILE.read_bytes()))
    server.start()
    try:
        assert server.watermark(samples.SPOOL) == 10
        again = samples.request(*samples.predictions(1, 5), head=samples.header())
        assert server.log_messages(again).duplicates == 5
        more = [samples.prediction(n, detections=samples.shapes()) for n in (11, 12)]
        answer = server.log_messages(samples.request(*more, head=samples.header()))
        assert (answer.committed_through, answer.accepted) == (12, 2)
    finally:
        server.stop()
    assert server.query("SELECT max(version) FROM schema_version") == [(NOW,)]
    assert server.query("SELECT device_id, count(*) FROM predictions GROUP BY ALL ORDER BY 1") == [
        ("gate-1", 9),
        ("gate-2", 3),
    ]
    assert server.query("SELECT sequence, reason FROM rejected_predictions") == [
        (6, "CONFIDENCE_OUT_OF_RANGE")
    ]
    assert server.query("SELECT first_sequence, last_sequence FROM gaps") == [(7, 8)]
    assert server.query("SELECT DISTINCT balanced FROM ledger") == [(True,)]


def test_nodes_spool_while_the_last_release_is_replaced(
    world: World, last_release: dict[str, str]
) -> None:
    world.ingest.environment = last_release
    world.ingest.start()
    with running(world.spec("node", pause=0.002), log_until_told) as node:
        wait_for_more(world)
        stopped = time.monotonic()
        world.ingest.stop()
        down, before = time.monotonic(), rows(world, "true")
        world.ingest.environment = {}
        world.ingest.start()
        started = time.monotonic()
        assert eventually(lambda: stored(world) > before, 60)
        committed = time.monotonic()
        wait_for_more(world)
        end(world, node)
    world.ingest.stop()
    assert world.ingest.query("SELECT max(version) FROM schema_version") == [(NOW,)]
    (life,) = read_lives(world.folder)
    counts = audit(world.ingest.database, [life])
    # The last release does not know keypoints: its rows, the first ones, have none.
    assert counts.misshapen == rows(world, f"{POSED} AND sequence <= ?", before) > 0
    replace(counts, misshapen=0).check()
    assert (counts.missing, counts.doubled, counts.gap_sequences) == (0, 0, 0)
    assert counts.stored == life.logs > 2 * SOME
    figures = {
        "stop_s": down - stopped,
        "start_s": started - down,
        "outage_s": committed - stopped,
    }
    rounded = {name: round(value, 2) for name, value in figures.items()}
    print(json.dumps({"test": "upgrade", "predictions": counts.stored, **rounded}))  # noqa: T201


def test_a_roll_back_is_to_the_copy_of_before(world: World, last_release: dict[str, str]) -> None:
    database = world.ingest.database
    world.ingest.environment = last_release
    world.ingest.start()
    with running(world.spec("node", pause=0.002), log_until_told) as node:
        wait_for_more(world)
        world.ingest.stop()
        copy = world.folder / "before.duckdb"
        shutil.copy(database, copy)
        world.ingest.environment = {}
        world.ingest.start()
        wait_for_more(world)
        world.ingest.stop()
        world.ingest.environment = last_release
        (world.folder / "newer").mkdir()
        for file in list(database.parent.glob(f"{database.name}*")):
            file.rename(world.folder / "newer" / file.name)
        shutil.copy(copy, database)
        world.ingest.start()
        wait_for_more(world)
        end(world, node)
    world.ingest.stop()
    assert rows(world, "true") > 0
    shutil.copy(database, copy)
    DuckDBStore(copy).close()  # migrated, as the auditor needs it
    counts = audit(copy, read_lives(world.folder))
    replace(counts, misshapen=0).check()
    assert (counts.lost, counts.doubled, counts.undeclared) == (0, 0, 0)
    # What only the newer file has is declared, and is still there.
    assert world.ingest.query("SELECT DISTINCT reason FROM gaps") == [("released",)]
    newer = world.folder / "newer" / database.name
    newer.rename(database)
    (there,) = world.ingest.query("SELECT count(*) FROM predictions")[0]
    assert there >= counts.missing == counts.gap_sequences > 0
    # And the older service leaves it alone.
    content = database.read_bytes()
    with pytest.raises(CommandError):
        world.ingest.start()
    said = (database.parent / "ingest.log").read_text().splitlines()[-1]
    assert REFUSAL in said
    assert database.read_bytes() == content


NODE = """
import sys
from edge.log.logger import PredictionLogger
from edge.records import Prediction
with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=sys.argv[1]) as log:
    log(Prediction("of the last release", "plates"))
    assert log.flush(30, until="spooled")
"""


def old_node(spool: Path, last_release: dict[str, str]) -> str:
    """Run a node of the last release, which reaches no service, and return its last line."""
    done = subprocess.run(
        [sys.executable, "-c", NODE, str(spool)],
        env={**os.environ, **last_release},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def test_a_spool_of_the_last_release_is_shipped_and_one_of_this_is_left_alone_by_it(
    tmp_path: Path, last_release: dict[str, str]
) -> None:
    spool, server = tmp_path / "spool", IngestProcess(tmp_path)
    assert old_node(spool, last_release) == ""
    server.start()
    with PredictionLogger(server.address, device_id="gate-1", spool_dir=spool) as log:
        log(Prediction("of this one", "plates"), wait="committed", timeout=60)
    server.stop()
    rows = server.query("SELECT image_id FROM predictions ORDER BY sequence")
    assert rows == [("of the last release",), ("of this one",)]
    before = (spool / "spool.db").read_bytes()
    assert "SPOOL_TOO_NEW" in old_node(spool, last_release)
    assert (spool / "spool.db").read_bytes() == before


def test_the_environment_runs_the_last_release(last_release: dict[str, str]) -> None:
    program = "import ingest_service; print(ingest_service.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **last_release},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.startswith(last_release["PYTHONPATH"].partition(":")[0])
