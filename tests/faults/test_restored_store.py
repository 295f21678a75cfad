"""Tests that restore the server's database from an older copy, or replace it by an empty one."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.nodes import Node
from tests.faults.world import World, campaign, running_world

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]


def copy_store(world: World) -> None:
    """End the server, and copy its database."""
    world.ingest.stop()
    shutil.copy(world.ingest.database, world.folder / "copy.duckdb")


def restore_store(world: World) -> None:
    """Kill the server, and restore the copy of its database."""
    remove_store(world)
    shutil.copy(world.folder / "copy.duckdb", world.ingest.database)


def remove_store(world: World) -> None:
    """Kill the server, and remove its database."""
    world.ingest.kill()
    for file in world.ingest.database.parent.glob(f"{world.ingest.database.name}*"):
        file.unlink()


FAULTS = [copy_store, restore_store, restore_store, remove_store]


@pytest.mark.parametrize("runs", [4, pytest.param(120, marks=SOAK)])
def test_what_the_store_has_lost_is_declared(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that predictions that the device has deleted are declared lost in the store."""
    with running_world(tmp_path / "world", 3) as world:
        for number in range(runs):
            # Every other node is killed: its committed position is in its spool's file.
            predictions = None if number % 2 else 500
            world.ingest.start()
            node = Node(world.spec(f"life{number}", predictions=predictions, pause=0.01))
            world.wait_for_commit()
            time.sleep(world.chance.uniform(0.0, 0.3))
            FAULTS[number % len(FAULTS)](world)
            if number % 2:
                node.kill()
            else:
                node.wait()
        counts = world.finish()
        assert counts.missing > 0
        report(campaign("the store is replaced or restored", runs, [counts]))
