"""Tests of a network that delays, throttles, cuts, half-closes and goes silent while nodes log."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.demo.relay import CUT, SILENT, Network, Relay
from tests.faults.auditor import Audit
from tests.faults.campaign import Campaign
from tests.faults.lives import LONGEST_RECOVERY, STOP, log_until_told
from tests.faults.nodes import Node
from tests.faults.world import WORLDS, World, campaign, several

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]


def some_network(chance: random.Random) -> Network:
    """Return a network with one or several faults, but not a silent one."""
    slow = Network(delay=chance.uniform(0.0, 0.1), jitter=chance.uniform(0.0, 0.2))
    narrow = Network(bytes_per_second=chance.uniform(2_000, 50_000))
    both = Network(slow.delay, slow.jitter, narrow.bytes_per_second)
    half = chance.choice([Network(ends_requests=True), Network(ends_answers=True)])
    return chance.choice([slow, narrow, both, half, half, CUT, CUT])


def go_through(world: World, faults: int, last: Network) -> float:
    """Run a node through a series of faults; return the seconds that it then needs to recover."""
    world.ingest.start()
    with Relay(world.ingest.target) as relay:
        node = Node(world.spec("node", target=relay.address, pause=0.02), log_until_told)
        for number in range(1, faults):
            with relay.being(SILENT if number % 7 == 0 else some_network(world.chance)):
                time.sleep(world.chance.uniform(0.05, 1.0))
            if world.chance.random() < 0.5:
                world.wait_for_commit(30.0)
        world.wait_for_commit(30.0)
        with relay.being(last):
            time.sleep(0.5)
            (world.folder / STOP).touch()
        healed = time.monotonic()
        node.wait(LONGEST_RECOVERY + 15)
        return time.monotonic() - healed


# A silent connection is detected after half a minute, in all worlds at once.
@pytest.mark.parametrize("runs", [16, pytest.param(200, marks=SOAK)])
def test_the_network(tmp_path: Path, report: Report, runs: int) -> None:
    recoveries: list[float] = []
    lasts = [SILENT] * WORLDS if runs > 16 else [SILENT, CUT, CUT, CUT]

    def fault(world: World, faults: int) -> Audit:
        recoveries.append(go_through(world, faults, lasts.pop()))
        return world.finish()

    audits = several(fault, tmp_path, runs)
    assert sum(audit.gap_sequences for audit in audits) == 0
    note = f"{max(recoveries):.0f} s from the last fault to all committed, at most"
    report(campaign("the network is slow, cut, half-closed, silent", runs, audits, note))
