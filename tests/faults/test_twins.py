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
from tests.faults.world import World, campaign, world

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]


@pytest.mark.parametrize("runs", [6, pytest.param(300, marks=SOAK)])
def test_two_nodes_with_one_device_id(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that the predictions of two nodes are kept apart by their spools."""
    spools = ("left", "right")
    with world(tmp_path / "world", 4) as made:
        made.ingest.start()
        for number in range(runs):
            with ExitStack() as both:
                for spool in spools:
                    node = both.enter_context(running(made.spec(f"{spool}{number}", spool)))
                    if number % 2 == 0:  # or a busy machine kills each before it logs
                        node.wait_until_it_logs()
                time.sleep(made.chance.uniform(0.0, 0.5))
        found = made.finish(spools)
        # A spool that is opened too often before it reaches the server goes on as another.
        assert found.spools == 2 or (found.spools > 2 and runs > MAX_OPENINGS)
        assert found.gap_sequences == 0
        report(campaign("two nodes have one device id", runs, [found]))


@pytest.mark.parametrize("runs", [2, pytest.param(200, marks=SOAK)])
def test_a_spool_that_is_copied(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that the copied predictions and those logged afterwards are stored exactly once."""
    with world(tmp_path / "world", 5) as made:
        made.ingest.start()
        spools = [spool for number in range(runs) for spool in copy_and_go_on(made, number)]
        found = made.finish(spools)
        assert found.gap_sequences == 0
        assert found.spools > runs, "nobody has noticed that a spool is a copy"
        report(campaign("a spool is copied", runs, [found]))


def copy_and_go_on(made: World, number: int) -> tuple[str, str]:
    """Let a node leave predictions in a spool, and two nodes go on with copies at the same time."""
    left, right = f"left{number}", f"right{number}"
    with running(made.spec(f"both{number}", left)) as node:
        node.wait_until_it_logs()
        time.sleep(made.chance.uniform(0.0, 0.3))
    shutil.copytree(made.folder / left, made.folder / right)
    for life in range(2):
        # Both start at once, and each is killed at a moment of its own, in the first life once it
        # logs: on a busy machine it might not get that far otherwise.
        nodes = [Node(made.spec(f"{spool}-{life}", spool)) for spool in (left, right)]
        made.chance.shuffle(nodes)
        for node in nodes:
            if life == 0:
                node.wait_until_it_logs()
            time.sleep(made.chance.uniform(0.0, 0.3))
            node.kill()
    return left, right
