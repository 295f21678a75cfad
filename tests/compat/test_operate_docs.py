"""Tests that run the commands of the pages about operating it as they are printed.

docs: how-to/operate.md, how-to/upgrade.md. The alerts and metrics of operate.md exist.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import grpc
import pytest
from sightline.ingest.v1.ingest_service_pb2 import GetStatsRequest
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from ingest_service.store.duckdb.file_store import DuckDBStore
from sightline import Prediction
from sightline.cli.processes import ServiceProcess
from tests.compat.test_alerts import ALERTS
from tests.compat.test_operator_docs import Desk
from tests.faults.disks import filled, limited, small_disk
from tests.pages import blocks, text
from tests.unit.edge.samples import eventually
from tests.unit.ingest_service.samples import message, prediction, timestamp
from tests.unit.ingest_service.store_conformance import commit

PAGE = "how-to/operate.md"
LOOK, ALONE, BACKUP, PUT_BACK = blocks(PAGE)
(ROLL_BACK,) = blocks("how-to/upgrade.md")
SOME, MANY = 3_000, 10_000


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_every_alert_has_a_row_and_every_row_an_alert() -> None:
    named = set(re.findall(r"`Sightline([A-Z]\w+)`", text(PAGE)))
    assert named == {alert.removeprefix("Sightline") for alert in ALERTS}


def test_every_metric_of_the_page_exists() -> None:
    named = set(re.findall(r"\bsightline_[a-z_]+", text(PAGE)))
    known = set(re.findall(r"`(sightline_\w+)`", text("reference/metrics.md")))
    assert len(named) > 4
    assert named <= known


def stored(address: str) -> int:
    """Return the number of predictions that a service has."""
    with grpc.insecure_channel(address) as channel:
        stats = IngestServiceStub(channel).GetStats(GetStatsRequest(), timeout=60)
    return stats.total_predictions


@contextmanager
def full(folder: Path, service: ServiceProcess, *, is_mounted: bool) -> Iterator[None]:
    with filled(folder, 0) if is_mounted else limited(service.pid, folder, 0):
        yield


def test_a_full_disk_stops_the_service_until_there_is_room(desk: Desk) -> None:
    data = desk.folder / "data"
    data.mkdir()
    with ExitStack() as stack:
        is_mounted = stack.enter_context(small_disk(data, 64))
        flags = ["--listen", "127.0.0.1:0", "--database", str(data / "sightline.duckdb")]
        service = stack.enter_context(ServiceProcess("ingest_service", flags))
        desk.env["SIGHTLINE_EDGE_INGEST_TARGET"] = service.address
        look = LOOK.replace("sightline.duckdb*", "data/sightline.duckdb*")
        log = stack.enter_context(desk.logger(service.address))
        log(Prediction("before", "plates"), wait="committed", timeout=60)
        with full(data, service, is_mounted=is_mounted):
            for number in range(SOME):  # the first fit into what the log has taken of the disk
                log(Prediction(f"meanwhile-{number}", "plates"))
            assert eventually(lambda: "NOT_SERVING" in desk.type(look), 60)
            assert log.stats().backlog > 0
        assert "total" in desk.type(look)
        assert log.flush(60, until="committed")
        assert eventually(lambda: "NOT_SERVING" not in desk.type(look), 60)
        assert (log.stats().committed, log.stats().dropped) == (SOME + 1, {})


def test_a_database_is_made_smaller(desk: Desk) -> None:
    database = desk.folder / "sightline.duckdb"
    received = datetime.now(UTC) - timedelta(days=8)
    store = DuckDBStore(database)
    names = (f"{uuid.uuid4()}-{uuid.uuid4()}" for _ in range(MANY))
    captured = timestamp(received)
    old = [prediction(n, image_id=name, captured_at=captured) for n, name in enumerate(names, 1)]
    commit(store, message(*old), now=lambda: received)
    store.close()
    retain = ["--retain-days", "7", "--retain-confirm-until", f"{datetime.now(UTC):%Y-%m-%d}T23:59"]
    with desk.serving(f"sightline serve ingest {' '.join(retain)}") as ready:
        with desk.logger(ready["address"]) as log:
            log(Prediction("new", "plates"), wait="committed", timeout=60)
        assert eventually(lambda: stored(ready["address"]) == 1, 60)
    (desk.folder / "elsewhere").mkdir()
    before = database.stat().st_size
    with desk.serving(ALONE):
        desk.type(BACKUP)
    desk.type(PUT_BACK)
    assert database.stat().st_size < before
    with desk.serving("sightline serve ingest") as ready, desk.logger(ready["address"]) as log:
        log(Prediction("newer", "plates"), wait="committed", timeout=60)
    with duckdb.connect(str(database), read_only=True) as connection:
        rows = connection.sql("SELECT image_id FROM predictions ORDER BY sequence").fetchall()
        assert rows == [("new",), ("newer",)]
        balanced = connection.sql("SELECT DISTINCT balanced FROM ledger").fetchall()
        assert balanced == [(True,)]


def test_a_database_is_rolled_back(desk: Desk) -> None:
    database = desk.database()
    with desk.serving("sightline serve ingest"):
        desk.type("sightline backup --to before.duckdb")
    database.write_bytes(b"newer")
    desk.type(ROLL_BACK)
    assert (desk.folder / "newer/sightline.duckdb").read_bytes() == b"newer"
    with desk.serving("sightline serve ingest") as ready:
        assert stored(ready["address"]) == 9
