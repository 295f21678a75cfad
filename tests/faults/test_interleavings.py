"""Tests that log, commit, crash, evict, lose answers and restore the server, in any order.

A state machine drives the real buffer, writer, spool and shipper against a fake server.
After every step the spool must hold exactly what it has promised, and the server only what was
spooled, once; at the end everything is stored, or is in a gap for the right reason.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import grpc
import hypothesis.strategies as st
import pytest
import tenacity
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from edge.records import Prediction
from edge.ship.shipper import _seconds_to_wait
from edge.spool import superblock as superblocks
from edge.spool.entries import Gap
from servicekit.errors import SightlineError
from tests.fakes.ingest import Stored
from tests.faults.campaign import Campaign
from tests.faults.lab import CrashError, Lab, Plan

PATIENT = pytest.mark.timeout(600)  # shrinking a failure takes minutes
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
MEMORY = Path("/dev/shm")
ERRORS = {
    "UNAVAILABLE": (grpc.StatusCode.UNAVAILABLE, 1.0),
    "DEADLINE_EXCEEDED": (grpc.StatusCode.DEADLINE_EXCEEDED, None),
    "INTERNAL": (grpc.StatusCode.INTERNAL, None),
    "RATE_LIMITED": (grpc.StatusCode.RESOURCE_EXHAUSTED, 2.0),
    "UNAUTHENTICATED": (grpc.StatusCode.UNAUTHENTICATED, None),
}
ALWAYS = {"stored", "crashes", "restores"}
"""Events that happen in every campaign."""
AT_LENGTH = {*ALWAYS, "crashes halfway", "spool_bytes", "spool_age"}
"""Events that happen in a long campaign."""
errors = st.sampled_from(sorted(ERRORS))
JUMPS = [0.0, 0.0, -1e9, -3600.0, 3600.0, 1e9]
"""Seconds by which the wall clock is set."""
Trouble = tuple[str, str | int]
troubles: st.SearchStrategy[Trouble] = st.one_of(
    st.just(("", "")),
    st.tuples(st.sampled_from(["before", "after", "watermark_errors"]), errors),
    st.tuples(st.sampled_from(["cut_after", "limited_after"]), st.integers(0, 3)),
    st.tuples(st.just("down"), st.integers(1, 4)),
)
rarely = st.sampled_from([False, False, False, True])


def error(name: str) -> SightlineError:
    code, retry_after = ERRORS[name]
    return SightlineError(code, name, "as the test wants", retry_after=retry_after)


class Interleavings(RuleBasedStateMachine):
    """A state machine of one node and one server."""

    seen: ClassVar[Counter[str]] = Counter()
    """Events of all runs."""

    @initialize(
        max_bytes=st.sampled_from([1 << 30, 60_000, 90_000]),
        max_age=st.sampled_from([0.0, 50.0]),
        on_full=st.sampled_from(["drop_oldest", "drop_newest"]),
        batch_size=st.integers(1, 4),
        stream_size=st.integers(2, 10),
    )
    def begin(self, **plan: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.boots = 0
        self.boot()
        self.lab = Lab(self.folder, Plan(**plan))
        self.logged = 0
        self.backups: list[dict[tuple[str, str], Stored]] = []
        self.is_regressed = False
        self.seen["runs"] += 1

    def teardown(self) -> None:
        if not hasattr(self, "lab"):
            return
        try:
            self.drain()
            self.check_the_end()
        finally:
            self.lab.node.spool.close()
            shutil.rmtree(self.folder)

    # Actions of the node.

    @rule(count=st.integers(1, 12), size=st.sampled_from([10, 800]), poison=rarely)
    def log(self, count: int, size: int, poison: bool) -> None:
        for number in range(count):
            kind = "poison" if poison and number == count // 2 else "image"
            self.logged += 1
            name = f"{kind}-{self.logged}"
            self.lab.node.buffer.put(Prediction(name, "m", labels={"pad": "x" * size}))

    @rule()
    def spool(self) -> None:
        self.alive(self.lab.node.writer._turn)

    @rule(count=st.integers(1, 8), size=st.sampled_from([10, 800, 4000]), poison=rarely)
    def log_and_spool(self, count: int, size: int, poison: bool) -> None:
        self.log(count, size, poison)
        self.spool()

    @rule(seconds=st.sampled_from([0.0, 20.0, 60.0]), jump=st.sampled_from(JUMPS))
    def time_passes_and_the_writer_tends(self, seconds: float, jump: float) -> None:
        self.pass_by(seconds)
        self.lab.clocks.wall = max(1.0, self.lab.clocks.wall + jump)
        self.alive(self.lab.node.writer._maintain)

    @rule()
    def ship_one_step(self) -> None:
        self.alive(lambda: self.shipping(self.lab.node.shipper._step))

    @rule(trouble=troubles, writes=st.booleans(), maintains=rarely)
    def ship(self, trouble: Trouble, writes: bool, maintains: bool) -> None:
        """Ship one stream with a fault on the way, while the writer is busy."""
        kind, detail = trouble
        if kind in {"down", "cut_after", "limited_after"}:
            setattr(self.lab.line, kind, detail)
        elif kind:
            getattr(self.lab.server, kind).append(error(str(detail)))
        writer = self.lab.node.writer
        self.lab.line.meanwhile = [writer._turn] * writes + [writer._maintain] * maintains
        self.alive(lambda: self.shipping(self.lab.node.shipper._round))

    # Faults of the node.

    @rule(reboots=st.booleans())
    def crash(self, reboots: bool) -> None:
        self.seen["crashes"] += 1
        if reboots:
            self.boot()
            self.pass_by(10.0)
        self.die()

    @rule(left=st.integers(0, 6))
    def crash_soon(self, left: int) -> None:
        self.lab.crashes.left = left

    @rule()
    def close_and_open(self) -> None:
        self.lab.line.meanwhile.clear()
        self.lab.restart()

    # Faults of the server.

    @rule()
    def back_up(self) -> None:
        self.backups.append(deepcopy(self.lab.server.spools))

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """Replace the server's store by an older one, or by an empty one."""
        index = data.draw(st.integers(-1, len(self.backups) - 1))
        self.lab.roll_back(self.backups[index] if index >= 0 else {})
        del self.backups[index + 1 :]
        self.is_regressed = True
        self.seen["restores"] += 1

    # Invariants.

    @invariant()
    def the_spool_keeps_its_books(self) -> None:
        lab, ledger = self.lab, self.lab.ledger
        spool, identity = lab.node.spool, lab.node.spool.identity
        assert spool.damaged == 0
        assert identity.last == ledger.last
        assert 0 <= identity.pending == identity.last - identity.acknowledged
        assert spool.committed == spool.spooled - identity.pending
        assert spool.sent_through <= identity.last
        position = identity.acknowledged
        for entry in lab.entries():
            if isinstance(entry, Gap):
                for sequence in range(entry.first, entry.last + 1):
                    assert ledger.why[sequence] is entry.reason
            else:
                assert entry.sequence not in ledger.why, "it was said to be lost"
                assert entry.prediction.endswith(ledger.predictions[entry.sequence])
            position = entry.sequence
        assert position == identity.last

    @invariant()
    def nothing_is_deleted_that_the_server_does_not_have(self) -> None:
        behind = self.lab.watermark < self.lab.node.spool.identity.acknowledged
        self.is_regressed &= behind
        assert not behind or self.is_regressed

    @invariant()
    def the_server_has_only_what_was_spooled_and_that_once(self) -> None:
        stored, ledger = self.lab.stored, self.lab.ledger
        assert len(self.lab.server.spools) <= 1
        stored.check()
        for sequence, prediction in stored.predictions.items():
            assert prediction.SerializeToString(deterministic=True).endswith(
                ledger.predictions[sequence]
            )
        for first, last, reason in stored.gaps:
            for sequence in range(first, last + 1):
                assert ledger.why[sequence] == reason

    # Helpers.

    def pass_by(self, seconds: float) -> None:
        self.lab.clocks.wall += seconds
        self.lab.clocks.steady += seconds

    def boot(self) -> None:
        self.boots += 1
        superblocks._BOOT_ID = self.folder / "boot_id"
        superblocks._BOOT_ID.write_text(f"boot-{self.boots}")

    def die(self) -> None:
        self.lab.crashes.left = None
        self.lab.line.meanwhile.clear()
        self.lab.crash()

    def alive(self, action: Callable[[], object]) -> None:
        try:
            action()
        except CrashError:
            self.seen["crashes halfway"] += 1
            self.die()

    def shipping(self, action: Callable[[], object]) -> None:
        """Take the next step of the shipper's thread, without its wait after an error."""
        node = self.lab.node
        if node.spool.identity.last <= node.shipper._core.position:
            return
        try:
            action()
        except SightlineError as failure:
            minimum = failure.retry_after or 0.0
            state = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type] # unused
            state.set_exception((type(failure), failure, None))
            self.lab.waits.append(_seconds_to_wait(state) - minimum)
        assert all(seconds >= 0.0 for seconds in self.lab.waits), "it comes back too early"

    def drain(self) -> None:
        """Ship everything that remains, without faults."""
        lab = self.lab
        lab.crashes.left = None
        lab.line.calm()
        for faults in (lab.server.before, lab.server.after, lab.server.watermark_errors):
            faults.clear()
        lab.node.writer._turn()
        patience = 20 + 8 * lab.node.spool.identity.pending
        while lab.node.spool.identity.pending or lab.watermark < lab.ledger.last:
            patience -= 1
            assert patience, "it does not come to an end"
            if not lab.node.spool.identity.pending:
                # The server lost confirmed predictions, which the node notices with the next one.
                self.log(1, 10, poison=False)
                lab.node.writer._turn()
            self.shipping(lab.node.shipper._round)

    def check_the_end(self) -> None:
        """Check that everything that was promised is stored or in a gap."""
        self.the_spool_keeps_its_books()
        self.the_server_has_only_what_was_spooled_and_that_once()
        stored, ledger = self.lab.stored, self.lab.ledger
        in_gaps = {n for first, last, _ in stored.gaps for n in range(first, last + 1)}
        assert stored.committed_through == ledger.last
        assert stored.predictions.keys() | in_gaps == set(range(1, ledger.last + 1))
        assert in_gaps <= ledger.why.keys()
        names = self.lab.server.images()
        assert len(names) == len(set(names))
        assert not any(name.startswith("poison") for name in names)
        self.seen["stored"] += len(names)
        self.seen.update(ledger.why[sequence].name.lower() for sequence in in_gaps)


@pytest.fixture(autouse=True)
def boots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the machine's boot id after the test."""
    monkeypatch.setattr(superblocks, "_BOOT_ID", superblocks._BOOT_ID)


@pytest.mark.parametrize(
    ("runs", "steps"), [pytest.param(120, 30, marks=PATIENT), pytest.param(2000, 100, marks=SOAK)]
)
def test_interleavings(report: Callable[[Campaign], None], runs: int, steps: int) -> None:
    Interleavings.seen.clear()
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            derandomize=runs < 1000,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    seen = Interleavings.seen
    happens = AT_LENGTH if runs >= 1000 else ALWAYS
    assert happens <= seen.keys(), "a campaign without these proves little"
    note = ", ".join(f"{count} {what}" for what, count in sorted(seen.items()) if what != "runs")
    report(Campaign("random interleavings", seen["runs"], 0, 0, 0, note))
