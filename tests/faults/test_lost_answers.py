"""Tests of streams that are committed, in whole or in part, and whose answers never arrive."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.answers import Answers, LostError, Stream
from tests.faults.campaign import Campaign
from tests.faults.nodes import running
from tests.faults.world import World, campaign, running_world
from tests.unit.edge.samples import eventually

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]


@dataclass
class Loser:
    """A fault that loses answers, some with part of the stream, and forwards half of all."""

    world: World
    runs: int
    lost: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, relay: Answers, stream: Stream) -> bytes:
        with self.lock:
            fault = self.world.chance.choice(["none", "none", "none", "answer", "part", "end"])
            if self.lost == self.runs or fault == "none":
                return relay.pass_on(stream)
            self.lost += 1
            if fault == "answer":
                relay.pass_on(stream)
            elif fault == "end":
                cancel: Callable[[], object] = relay.commit(stream).cancel
                cancel()
            else:
                relay.pass_on(stream[: self.world.chance.randint(1, len(stream))])
            raise LostError


@dataclass
class Killer:
    """A fault that kills the server after it commits a stream and before it answers."""

    world: World
    died: threading.Event = field(default_factory=threading.Event)

    def __call__(self, relay: Answers, stream: Stream) -> bytes:
        if self.died.is_set():
            return relay.pass_on(stream)
        call = relay.commit(stream)
        assert not call.done()
        self.world.ingest.kill()
        self.died.set()
        raise LostError


@pytest.mark.parametrize("runs", [12, pytest.param(2000, marks=SOAK)])
def test_answers_are_lost(tmp_path: Path, report: Report, runs: int) -> None:
    with running_world(tmp_path / "world", 1) as world:
        world.ingest.start()
        loser = Loser(world, runs)
        with Answers(world.ingest.target) as relay:
            relay.fault = loser
            with running(world.spec("node", target=relay.target, pause=0.02)) as node:
                assert eventually(lambda: loser.lost == runs or not node.is_alive, 60 + runs)
        counts = world.finish()
        assert counts.gap_sequences == 0
        report(campaign("answers are lost", runs, [counts]))


@pytest.mark.parametrize("runs", [2, pytest.param(100, marks=SOAK)])
def test_the_server_commits_and_dies(tmp_path: Path, report: Report, runs: int) -> None:
    with ExitStack() as stack:
        world = stack.enter_context(running_world(tmp_path / "world", 2))
        world.ingest.start()
        relay = stack.enter_context(Answers(world.ingest.target))
        with running(world.spec("node", target=relay.target, pause=0.02)):
            for _ in range(runs):
                relay.fault = killer = Killer(world)
                assert killer.died.wait(60)
                world.ingest.start()
        counts = world.finish()
        assert counts.gap_sequences == 0
        report(campaign("the server commits and dies unanswered", runs, [counts]))
