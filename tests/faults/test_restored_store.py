"""Tests that restore the server's database from an older copy, or replace it by an empty one."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.nodes import Node
from tests.faults.world import World, campaign, world

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]


def copy_store(made: World) -> None:
    """End the server, and copy its database."""
    made.ingest.stop()
    shutil.copy(made.ingest.database, made.folder / "copy.duckdb")


def restore_store(made: World) -> None:
    """Kill the server, and restore the copy of its database."""
    remove_store(made)
    shutil.copy(made.folder / "copy.duckdb", made.ingest.database)


def remove_store(made: World) -> None:
    """Kill the server, and remove its database."""
    made.ingest.kill()
    for file in made.ingest.database.parent.glob(f"{made.ingest.database.name}*"):
        file.unlink()


FAULTS = [copy_store, restore_store, restore_store, remove_store]


@pytest.mark.parametrize("runs", [4, pytest.param(120, marks=SOAK)])
def test_what_the_store_has_lost_is_declared(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that predictions that the device has deleted are declared lost in the store."""
    with world(tmp_path / "world", 3) as made:
        for number in range(runs):
            # Every other node is killed: its committed position is in its spool's file.
            predictions = None if number % 2 else 500
            made.ingest.start()
            node = Node(made.spec(f"life{number}", predictions=predictions, pause=0.01))
            made.wait_for_commit()
            time.sleep(made.chance.uniform(0.0, 0.3))
            FAULTS[number % len(FAULTS)](made)
            if number % 2:
                node.kill()
            else:
                node.wait()
        found = made.finish()
        assert found.missing > 0
        report(campaign("the store is replaced or restored", runs, [found]))
