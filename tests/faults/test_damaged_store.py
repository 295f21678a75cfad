"""Tests that flip, zero or cut off bytes of the server's database or its write-ahead log."""

import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from servicekit.terminal import CommandError
from tests.faults.auditor import Audit
from tests.faults.campaign import Campaign
from tests.faults.nodes import Node
from tests.faults.test_damage import damage
from tests.faults.world import WORLDS, World, campaign, several

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]


def log_some(world: World, name: str) -> None:
    """Run a node and wait until the server has committed its log."""
    Node(world.spec(name, predictions=world.chance.choice([20, 200, 500]))).wait()


def copy_store(source: Path, target: Path) -> None:
    """Copy the files of a store over the existing ones."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in source.glob("log.duckdb*"):
        shutil.copy(path, target)


def starts(world: World) -> bool:
    """Start the server; return False if it refuses, with one sentence."""
    log = world.ingest.database.with_name("ingest.log")
    log.write_text("")
    try:
        world.ingest.start()
    except CommandError as error:
        refusal = str(error)
    else:
        return True
    lines = log.read_text().splitlines()
    assert "ended with exit code 1:" in refusal, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("python -m ingest_service: database: "), lines
    return False


def can_be_read(database: Path) -> bool:
    """Read every value: DuckDB checks a block when it is read."""
    with duckdb.connect(str(database), read_only=True) as connection:
        for table in ("predictions", "gaps", "watermarks", "streams"):
            try:
                connection.execute(f"SELECT hash(t) FROM {table} AS t").fetchall()
            except duckdb.IOException:
                return False
    return True


def damage_store(world: World, runs: int, outcomes: list[str]) -> Audit:
    """Damage the store repeatedly; restore a copy when it cannot be used."""
    database = world.ingest.database
    store, copy = database.parent, world.folder / "copy"
    for number in range(runs):
        world.ingest.start()
        log_some(world, f"before{number}")
        if world.chance.random() < 0.5:  # otherwise all of it is in the log
            world.ingest.stop()
            world.ingest.start()
            log_some(world, f"again{number}")
        world.ingest.kill()
        copy_store(store, copy)
        damage(world.chance.choice(list(store.glob("log.duckdb*"))), world.chance)
        outcome = "refused"
        if starts(world):
            log_some(world, f"after{number}")
            world.ingest.stop()
            outcome = "taken" if can_be_read(database) else "found when read"
        if outcome != "taken":
            for path in copy.iterdir():
                shutil.copy(path, store)
        outcomes.append(outcome)
    return world.finish()


@pytest.mark.parametrize("runs", [WORLDS, pytest.param(200, marks=SOAK)])
def test_a_damaged_store(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that the store is refused, or that the devices declare what it lost."""
    outcomes: list[str] = []
    audits = several(lambda world, n: damage_store(world, n, outcomes), tmp_path, runs)
    assert "refused" in outcomes
    note = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in sorted(set(outcomes)))
    report(campaign("bytes of the server's database are damaged", runs, audits, note))
