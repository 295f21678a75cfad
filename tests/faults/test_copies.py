"""Item 12: tests of spools restored, started offline, cloned and shipped at once, in any order."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import grpc
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge.spool import superblock as superblocks
from edge.spool.superblock import FileLocation
from servicekit.errors import SightlineError
from tests.faults.campaign import Campaign
from tests.faults.copies import Backup, Fleet, Folder, How

MEMORY = Path("/dev/shm")
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
AWAY = SightlineError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "as the test wants")
WAYS: list[How] = ["over the files", "anew", "without the mark", "without the folders below"]
numbers = st.integers(0, 1 << 20)


class Copies(RuleBasedStateMachine):
    """A state machine of nodes that can be copies of one another, and a server."""

    seen: ClassVar[Counter[str]] = Counter()

    @initialize(stream_size=st.integers(1, 6), is_cloned_machine=st.booleans())
    def begin(self, stream_size: int, is_cloned_machine: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.location_of = superblocks.location_of
        if is_cloned_machine:  # with its disk, so that nothing on it distinguishes the two
            superblocks.location_of = lambda path: FileLocation(7, 7, "machine")
        self.fleet = Fleet(self.folder, stream_size)
        self.backups: list[Backup] = []
        self.seen["runs"] += 1

    def teardown(self) -> None:
        if not hasattr(self, "fleet"):
            return
        try:
            self.fleet.drain()
            self.fleet.check()
            self.seen["stored"] += len(self.fleet.server.images())
            self.seen["conflicts"] += self.fleet.server.conflicts
        finally:
            superblocks.location_of = self.location_of
            self.fleet.close()
            shutil.rmtree(self.folder)

    @rule(index=numbers, count=st.integers(1, 6))
    def log(self, index: int, count: int) -> None:
        self.node(index).log(self.fleet.images(count))

    @rule(index=numbers, trouble=st.sampled_from(["", "", "", "down", "lost", "cut", "twin"]))
    def ship(self, index: int, trouble: str) -> None:
        node, line = self.node(index), self.fleet.line
        if trouble == "down":
            line.down = 1
        elif trouble == "lost":
            self.fleet.server.after.append(AWAY)
        elif trouble == "cut":
            line.cut_after = 1
        elif trouble == "twin" and len(self.fleet.folders) > 1:
            line.meanwhile = [partial(self.ship_meanwhile, node, self.node(index + 1))]
        node.ship()
        line.calm()
        self.fleet.server.after.clear()

    def ship_meanwhile(self, node: Folder, twin: Folder) -> None:
        """Ship from another folder while a stream of the first one is in flight."""
        streams = self.fleet.server.streams
        before = len(streams)
        is_same = node.spool.identity.spool_id == twin.spool.identity.spool_id
        twin.ship()
        if is_same and any(streams[before:]):
            self.seen["copies ship at one moment"] += 1

    @rule(index=numbers, counts=st.tuples(numbers, numbers), after=st.sampled_from(["ask", "send"]))
    def ship_at_one_moment(self, index: int, counts: tuple[int, int], after: str) -> None:
        """Log in two copies from the same state, and ship one between two calls of the other."""
        node, line = self.node(index), self.fleet.line
        if len(self.fleet.folders) < 4:
            twin = self.fleet.clone(node.back_up())
            self.seen["clones"] += 1
        else:
            twin = self.node(index + 1)
        for folder, count in zip((node, twin), counts, strict=True):
            folder.log(self.fleet.images(1 + count % 5))
        once: list[Callable[[], None]] = [partial(self.ship_meanwhile, node, twin)]
        if after == "ask":
            node.restart(killed=True)  # so that it calls GetWatermark
            line.after_watermark = once
        else:
            line.meanwhile = once
        node.ship()
        line.calm()

    @rule(index=numbers, killed=st.booleans())
    def restart(self, index: int, killed: bool) -> None:
        self.node(index).restart(killed=killed)

    @rule(index=numbers)
    def back_up(self, index: int) -> None:
        self.backups.append(self.node(index).back_up())

    @precondition(lambda self: self.backups)
    @rule(index=numbers, backup=numbers, how=st.sampled_from(WAYS))
    def put_back(self, index: int, backup: int, how: How) -> None:
        self.node(index).put_back(self.backups[backup % len(self.backups)], how)
        self.seen["put back"] += 1

    @precondition(lambda self: self.backups and len(self.fleet.folders) < 4)
    @rule(backup=numbers)
    def clone(self, backup: int) -> None:
        self.fleet.clone(self.backups[backup % len(self.backups)])
        self.seen["clones"] += 1

    def node(self, index: int) -> Folder:
        return self.fleet.folders[index % len(self.fleet.folders)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("runs", "steps"), [(150, 25), pytest.param(3000, 60, marks=SOAK)])
def test_copies_of_spools(report: Callable[[Campaign], None], runs: int, steps: int) -> None:
    Copies.seen.clear()
    run_state_machine_as_test(
        Copies,
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            derandomize=runs < 1000,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    seen = Copies.seen
    expected = {"put back", "clones", "stored", "conflicts", "copies ship at one moment"}
    assert expected <= (+seen).keys()
    note = ", ".join(f"{count} {what}" for what, count in sorted(seen.items()) if what != "runs")
    report(Campaign("spools are put back and cloned (model)", seen["runs"], 0, 0, 0, note))
