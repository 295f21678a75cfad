"""Tests that kill inference servers repeatedly: every key gets one answer, complete and in time."""

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.callers import PATIENCE, Callers
from tests.faults.campaign import Campaign
from tests.integration.inference.process import InferenceProcess
from tests.unit.edge.samples import eventually
from tests.unit.inference_service.tiny_onnx import colour_model

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
LEASE = 1.0
CALLERS = 4
RUN_SECONDS = 0.03  # per image: claims are pending long enough to be observed


class Servers:
    """Server processes on one database, each killed and restarted.

    Args:
        folder: folder of the database and all other files.
        number: number of concurrent servers.
        seed: seed of its random choices.
    """

    def __init__(self, folder: Path, number: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.database = folder / "claims.sqlite"
        self._folder = folder
        self._servers: list[InferenceProcess | None] = [None] * number
        colour_model(folder / "models" / "colours" / "1" / "model.onnx", wait_seconds=RUN_SECONDS)

    def address(self, chance: random.Random) -> str | None:
        """Return the address of a server that is ready, if any is."""
        ready = [server.address for server in self._servers if server and server.address]
        return chance.choice(ready) if ready else None

    def start(self, slot: int) -> None:
        """Start a server and wait until it is ready."""
        server = self._servers[slot] = InferenceProcess(
            self._folder,
            *("--model-repository", str(self._folder / "models"), "--workers", "2"),
            *("--idempotency-database", str(self.database)),
            *("--idempotency-lease-seconds", str(LEASE)),
        )
        server.wait_ready()

    def kill(self, slot: int) -> None:
        """Kill a server at once, if it runs."""
        server = self._servers[slot]
        if server is not None:
            server.process.kill()
            self._servers[slot] = None
            server.stop()

    def pending(self) -> int:
        """Return the number of pending claims, without those of servers that died earlier."""
        mine = """
            SELECT count(*) FROM claims
            WHERE ok IS NULL AND until > (SELECT seconds FROM clock) + ?
        """
        with closing(sqlite3.connect(self.database)) as reader:
            return int(reader.execute(mine, [LEASE / 2]).fetchone()[0])

    def kill_at_some_point(self, slot: int, callers: Callers) -> bool:
        """Kill a server, usually while it works; return True if there was work."""
        if self.chance.random() < 0.8:
            enough = callers.answered + self.chance.randint(0, 10)
            eventually(lambda: callers.answered >= enough and self.pending() > 0, PATIENCE)
            time.sleep(self.chance.uniform(0.0, 0.03))
        else:
            time.sleep(self.chance.uniform(0.0, 0.5))
        self.kill(slot)
        return self.pending() > 0

    def damaged(self) -> bool:
        """Return True if the database is damaged or holds an incomplete record."""
        half = "SELECT count(*) FROM claims WHERE (ok IS NULL) != (payload IS NULL)"
        with closing(sqlite3.connect(self.database)) as reader:
            whole = reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return not whole or reader.execute(half).fetchone() != (0,)


@contextmanager
def asking(servers: Servers, seed: int) -> Iterator[Callers]:
    """Run callers until the end of the block."""
    callers = Callers(servers.address, LEASE)
    with ThreadPoolExecutor(CALLERS) as pool:
        futures = [pool.submit(callers.keep_asking, seed + number) for number in range(CALLERS)]
        try:
            yield callers
        finally:
            callers.over.set()
    for future in futures:
        future.result()


def verdict(name: str, runs: int, servers: Servers, callers: Callers, at_work: int) -> Campaign:
    """Repeat every request, and count the wrong answers."""
    for keyed in callers.requests:
        assert callers.ask(keyed, servers.chance)
    keys = len(callers.requests)
    assert keys > runs
    assert at_work >= runs // 4, "too few were doing anything when they were killed"
    doubled = sum(len(keyed.answers) > 1 for keyed in callers.requests)
    half = sum(keyed.has_half_an_answer for keyed in callers.requests)
    note = f"{keys} keys, {at_work} kills left claims"
    if callers.refusals:
        note += f", refused: {dict(callers.refusals)}"
    return Campaign(
        name,
        runs,
        lost=callers.refusals.total() + sum(not keyed.answers for keyed in callers.requests),
        doubled=doubled,
        undeclared=half + servers.damaged(),
        note=note,
    )


@pytest.mark.parametrize("runs", [8, pytest.param(500, marks=SOAK)])
def test_one_server(tmp_path: Path, report: Report, runs: int) -> None:
    """Kill a server repeatedly, and restart it on the same database."""
    servers, at_work = Servers(tmp_path, 1, seed=7), 0
    try:
        with asking(servers, 70) as callers:
            for _ in range(runs):
                servers.start(0)
                at_work += servers.kill_at_some_point(0, callers)
            servers.start(0)
        campaign = verdict("SIGKILL of an inference server", runs, servers, callers, at_work)
    finally:
        servers.kill(0)
    report(campaign)


@pytest.mark.parametrize("runs", [4, pytest.param(200, marks=SOAK)])
def test_two_servers_on_one_database(tmp_path: Path, report: Report, runs: int) -> None:
    """Check that the other server goes on, and takes over the claims of the killed one."""
    servers, at_work = Servers(tmp_path, 2, seed=8), 0
    try:
        servers.start(0)
        with asking(servers, 80) as callers:
            for number in range(runs):
                servers.start(1 - number % 2)
                at_work += servers.kill_at_some_point(number % 2, callers)
        name = "SIGKILL of one of two inference servers"
        campaign = verdict(name, runs, servers, callers, at_work)
    finally:
        for slot in range(2):
            servers.kill(slot)
    report(campaign)
