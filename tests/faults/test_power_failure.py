"""Item 14: power failures during commits; the server restarts with all that it confirmed."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.auditor import Audit
from tests.faults.campaign import Campaign
from tests.faults.nodes import running
from tests.faults.power import Disk
from tests.faults.world import WORLDS, World, campaign, several

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]


def cut_power(world: World, runs: int, unconfirmed: list[int], aside: list[Path]) -> Audit:
    """Kill the server this many times while a node logs, and lose its unsynced writes."""
    disk = Disk(world.folder)
    world.ingest.environment = disk.environment
    with running(world.spec("node", pause=0.02)):
        for _ in range(runs):
            world.ingest.start()  # must not refuse
            world.wait_for_commit(20.0)
            time.sleep(world.chance.uniform(0.0, 0.1))
            world.ingest.kill()
            unconfirmed.append(disk.fail(world.ingest.database, world.chance))
    world.ingest.environment = {}
    audit = world.finish()
    aside += world.ingest.database.parent.glob("*.wal.tail-*")
    return audit


@pytest.mark.parametrize("runs", [2 * WORLDS, pytest.param(240, marks=SOAK)])
def test_power_failures_of_the_server(tmp_path: Path, report: Report, runs: int) -> None:
    unconfirmed: list[int] = []
    aside: list[Path] = []
    audits = several(lambda world, n: cut_power(world, n, unconfirmed, aside), tmp_path, runs)
    assert sum(audit.gap_sequences for audit in audits) == 0, "what was confirmed was lost"
    hit = sum(1 for size in unconfirmed if size)
    assert hit > 0 or runs < 100, "or nothing was tried; a few runs may all miss a commit"
    note = f"{hit} within a commit, {len(aside)} ends of the log set aside"
    report(campaign("power failure of the server", runs, audits, note))
