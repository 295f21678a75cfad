"""Tests of two nodes with the same device id, and of two machines with the same spool."""

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge.spool.lineage import MAX_OPENINGS
from tests.faults.campaign import Campaign
from tests.faults.nodes import Node, running
from tests.faults.world import World, campaign, running_world

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]


@pytest.mark.parametrize("runs", [6, pytest.param(300, marks=SOAK)])
def test_two_nodes_with_one_device_id(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that the predictions of two nodes are kept apart by their spools."""
    spools = ("left", "right")
    with running_world(tmp_path / "world", 4) as world:
        world.ingest.start()
        for number in range(runs):
            with ExitStack() as both:
                for spool in spools:
                    node = both.enter_context(running(world.spec(f"{spool}{number}", spool)))
                    if number % 2 == 0:  # or a busy machine kills each before it logs
                        node.wait_until_it_logs()
                time.sleep(world.chance.uniform(0.0, 0.5))
        counts = world.finish(spools)
        # A spool that is opened too often before it reaches the server goes on as another.
        assert counts.spools == 2 or (counts.spools > 2 and runs > MAX_OPENINGS)
        assert counts.gap_sequences == 0
        report(campaign("two nodes have one device id", runs, [counts]))


@pytest.mark.parametrize("runs", [2, pytest.param(200, marks=SOAK)])
def test_a_spool_that_is_copied(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that the copied predictions and those logged afterwards are stored exactly once."""
    with running_world(tmp_path / "world", 5) as world:
        world.ingest.start()
        spools = [spool for number in range(runs) for spool in copy_and_go_on(world, number)]
        counts = world.finish(spools)
        assert counts.gap_sequences == 0
        assert counts.spools > runs, "nobody has noticed that a spool is a copy"
        report(campaign("a spool is copied", runs, [counts]))


def copy_and_go_on(world: World, number: int) -> tuple[str, str]:
    """Let a node leave predictions in a spool, and two nodes go on with copies at the same time."""
    left, right = f"left{number}", f"right{number}"
    with running(world.spec(f"both{number}", left)) as node:
        node.wait_until_it_logs()
        time.sleep(world.chance.uniform(0.0, 0.3))
    shutil.copytree(world.folder / left, world.folder / right)
    for life in range(2):
        # Both start at once, and each is killed at a moment of its own, in the first life once it
        # logs: on a busy machine it might not get that far otherwise.
        nodes = [Node(world.spec(f"{spool}-{life}", spool)) for spool in (left, right)]
        world.chance.shuffle(nodes)
        for node in nodes:
            if life == 0:
                node.wait_until_it_logs()
            time.sleep(world.chance.uniform(0.0, 0.3))
            node.kill()
    return left, right
