"""Tests with a node's disk that is repeatedly full: predictions that are not kept are declared."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.auditor import Audit
from tests.faults.campaign import Campaign
from tests.faults.disks import filled, limited, small_disk
from tests.faults.ledger import read_lives
from tests.faults.lives import LONGEST_RECOVERY, STOP, log_until_told
from tests.faults.nodes import Node
from tests.faults.world import WORLDS, World, campaign, several

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
PATIENCE = 5.0
"""Seconds for which the writer retries before it drops the waiting entries."""


@contextmanager
def full_disk(world: World, node: Node, spool: Path, *, is_mounted: bool) -> Iterator[None]:
    """Limit the node's writes to a few bytes, within the block."""
    spare = world.chance.choice([0, 0, 100, 5_000, 50_000])
    with ExitStack() as stack:
        if is_mounted:
            stack.enter_context(filled(spool, spare))
        else:
            stack.enter_context(limited(node.pid, spool, spare))
        yield


def fill(world: World, runs: int, *, mounts: bool) -> Audit:
    """Fill the disk this many times, with the server up or down."""
    spec = world.spec("node", pause=0.01)
    reserve = world.chance.choice([0, 2 << 20])
    options = replace(spec.options, disk_reserve_bytes=reserve, spool_bytes=1 << 20)
    spec = replace(spec, options=options)
    spec.spool.mkdir()
    with ExitStack() as stack:
        is_mounted = mounts and stack.enter_context(small_disk(spec.spool, 8))
        node = Node(spec, log_until_told)
        for number in range(runs):
            if world.chance.random() < 0.5 or number == runs - 1:
                world.ingest.start()
            time.sleep(world.chance.uniform(0.3, 1.0))
            with full_disk(world, node, spec.spool, is_mounted=is_mounted):
                time.sleep(PATIENCE + 1 if number % 3 == 0 else world.chance.uniform(0.0, 3.0))
            if number < runs - 1:
                world.ingest.stop()
        (world.folder / STOP).touch()
        node.wait(LONGEST_RECOVERY + 15)
        counts = world.finish()
    assert counts.stored + counts.gap_sequences == sum(
        life.logs for life in read_lives(world.folder)
    )
    return counts


@pytest.mark.parametrize("runs", [WORLDS, pytest.param(80, marks=SOAK)])
def test_the_disk_of_the_node(tmp_path: Path, report: Report, runs: int) -> None:
    """Fill a small tmpfs, if one can be mounted, and limit the size of files."""
    mounts = [True, False] * (WORLDS // 2)
    audits = several(lambda world, n: fill(world, n, mounts=mounts.pop()), tmp_path, runs)
    assert sum(audit.gap_sequences for audit in audits) > 0
    report(campaign("full disk of the node", runs, audits))
