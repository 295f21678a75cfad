"""Tests that kill nodes and servers repeatedly: every spooled prediction is stored exactly once."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.auditor import Audit
from tests.faults.campaign import Campaign
from tests.faults.nodes import Node, Spec, fork_and_log, keep_logging, log_and_close, running
from tests.faults.world import World, campaign, several

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]


def kill_nodes(
    world: World, runs: int, longest: float, lives: tuple[Callable[[Spec], None], ...]
) -> Audit:
    """Kill nodes one by one, all on one spool."""
    world.ingest.start()
    for number in range(runs):
        life = world.chance.choice(lives)
        spec = world.spec(f"life{number}", predictions=_how_many(world, life))
        with running(spec, life) as node:
            if life is fork_and_log or world.chance.random() < 0.5:
                node.wait_until_it_logs()
            time.sleep(world.chance.uniform(0.0, longest))
    return world.finish()


def _how_many(world: World, life: Callable[[Spec], None]) -> int | None:
    return world.chance.randint(0, 500) if life is log_and_close else None


def kill_servers(world: World, runs: int, at_work: list[World]) -> Audit:
    """Kill servers one by one, all on one database, while a node logs.

    Args:
        world: the world.
        runs: number of servers.
        at_work: gets an entry for each server that had committed before its end.
    """
    with running(world.spec("node", pause=0.04)):
        for _ in range(runs):
            if world.start_or_die():
                # A node that has failed to reach the server this often backs off for long.
                if world.chance.random() < 0.5 and world.wait_for_commit(30.0):
                    at_work.append(world)
                time.sleep(world.chance.uniform(0.0, 0.3))
                world.ingest.kill()
    return world.finish()


def kill_both(world: World, runs: int) -> Audit:
    """Kill node and server within milliseconds of each other."""
    for number in range(runs):
        world.ingest.start()
        node = Node(world.spec(f"life{number}", pause=0.01))
        world.wait_for_commit()
        time.sleep(world.chance.uniform(0.0, 0.2))
        kills = [node.kill, world.ingest.kill]
        world.chance.shuffle(kills)
        for kill in kills:
            kill()
    return world.finish()


@pytest.mark.parametrize("runs", [20, pytest.param(500, marks=SOAK)])
def test_the_node(tmp_path: Path, report: Report, runs: int) -> None:
    def fault(world: World, runs: int) -> Audit:
        return kill_nodes(world, runs, 0.6, (keep_logging,))

    audits = several(fault, tmp_path, runs)
    assert sum(audit.gap_sequences for audit in audits) == 0
    assert sum(audit.spooled for audit in audits) > runs * 10
    report(campaign("SIGKILL of the node", runs, audits))


@pytest.mark.parametrize("runs", [12, pytest.param(500, marks=SOAK)])
def test_the_server(tmp_path: Path, report: Report, runs: int) -> None:
    at_work: list[World] = []
    audits = several(lambda world, n: kill_servers(world, n, at_work), tmp_path, runs)
    assert sum(audit.gap_sequences for audit in audits) == 0
    assert sum(audit.spooled for audit in audits) > runs * 10
    assert len(at_work) >= max(runs // 20, 1), "too few were doing anything when they were killed"
    note = f"{len(at_work)} right after a commit"
    report(campaign("SIGKILL of the server", runs, audits, note))


@pytest.mark.parametrize("runs", [4, pytest.param(100, marks=SOAK)])
def test_both_at_once(tmp_path: Path, report: Report, runs: int) -> None:
    audits = several(kill_both, tmp_path, runs)
    assert sum(audit.gap_sequences for audit in audits) == 0
    report(campaign("SIGKILL of both at once", runs, audits))


@pytest.mark.parametrize("runs", [20, pytest.param(300, marks=SOAK)])
def test_the_node_while_it_starts_or_closes(tmp_path: Path, report: Report, runs: int) -> None:
    def fault(world: World, runs: int) -> Audit:
        return kill_nodes(world, runs, 0.15, (keep_logging, log_and_close, log_and_close))

    audits = several(fault, tmp_path, runs)
    assert sum(audit.gap_sequences for audit in audits) == 0
    report(campaign("SIGKILL of the node at its start or close", runs, audits))


@pytest.mark.parametrize("runs", [4, pytest.param(160, marks=SOAK)])
def test_a_node_that_forks_and_its_children(tmp_path: Path, report: Report, runs: int) -> None:
    def fault(world: World, runs: int) -> Audit:
        return kill_nodes(world, runs, 0.6, (fork_and_log,))

    audits = several(fault, tmp_path, runs)
    assert sum(audit.gap_sequences for audit in audits) == 0
    report(campaign("SIGKILL of a node that forks, or its child", runs, audits))
