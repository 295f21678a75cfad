"""Item 9: tests that restore files of the server's store from various moments, or remove them."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.auditor import Audit
from tests.faults.campaign import Campaign
from tests.faults.nodes import running
from tests.faults.test_damaged_store import starts
from tests.faults.world import WORLDS, World, campaign, several

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
KEPT = 6


def put_back(world: World, runs: int, outcomes: list[str]) -> Audit:
    """Stop or kill the server this many times, and put files of other moments in place."""
    store, moments = world.ingest.database.parent, world.folder / "moments"
    moments.mkdir()
    for number in range(runs):
        world.ingest.start()
        # A node that has failed to reach the server backs off, so each node is a new one.
        with running(world.spec(f"life{number}", pause=0.03)):
            world.wait_for_commit()
            time.sleep(world.chance.uniform(0.0, 0.2))
            world.ingest.kill() if world.chance.random() < 0.7 else world.ingest.stop()
        keep(store, moments / str(number))
        shutil.rmtree(moments / str(number - KEPT), ignore_errors=True)
        mix(world, store, moments)
        if starts(world):
            outcomes.append("taken")
            with running(world.spec(f"again{number}", pause=0.03)):
                world.wait_for_commit()
            world.ingest.kill()
        else:
            outcomes.append("refused")
            bring(moments / str(number), store)
    return world.finish()


def keep(store: Path, moment: Path) -> None:
    """Save the files of a store as they are."""
    moment.mkdir()
    for path in store.glob("log.duckdb*"):
        shutil.copy(path, moment)


def bring(moment: Path, store: Path) -> None:
    """Restore all files of a moment, and remove others."""
    for path in store.glob("log.duckdb*"):
        path.unlink()
    for path in moment.iterdir():
        shutil.copy(path, store)


def mix(world: World, store: Path, moments: Path) -> None:
    """Restore or remove the database, its log or the commit record; keep the rest."""
    parts = ["log.duckdb", "log.duckdb.wal", "log.duckdb.mark"]
    chosen = world.chance.sample(parts, world.chance.choice([1, 1, 1, 2, 3]))
    moment = world.chance.choice(sorted(moments.iterdir()))
    for name in chosen:
        if world.chance.random() < 0.3:  # each from another moment
            moment = world.chance.choice(sorted(moments.iterdir()))
        (store / name).unlink(missing_ok=True)
        if (moment / name).exists():
            shutil.copy(moment / name, store)


@pytest.mark.parametrize("runs", [3 * WORLDS, pytest.param(240, marks=SOAK)])
def test_files_of_the_store_that_are_put_back(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that the server refuses the files, or that the nodes declare what is missing."""
    outcomes: list[str] = []
    audits = several(lambda world, n: put_back(world, n, outcomes), tmp_path, runs)
    assert outcomes.count("refused") > 0
    assert outcomes.count("taken") > 0
    note = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in sorted(set(outcomes)))
    report(campaign("files of the server's store are put back", runs, audits, note))
