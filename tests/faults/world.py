"""A server and the nodes that log to it, for the auditor to check at the end."""

import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from servicekit.terminal import CommandError
from tests.faults.auditor import Audit, audit
from tests.faults.campaign import Campaign
from tests.faults.ledger import read_lives
from tests.faults.nodes import Spec, drain
from tests.integration.edge_log.ingest import Ingest
from tests.unit.edge.samples import eventually

Fault = Callable[["World", int], Audit]
WORLDS = 4


class World:
    """A server on its own socket, and nodes.

    Args:
        folder: folder of all files; it is created.
        sockets: folder with a path short enough for a socket.
        seed: seed of its random choices.

    Attributes:
        ingest: the server, not started yet.
        chance: source of all random choices.
    """

    def __init__(self, folder: Path, sockets: str, seed: int) -> None:
        (folder / "ingest").mkdir(parents=True)
        self.folder = folder
        self.chance = random.Random(seed)
        # A port could be taken by another process while the server is away; a path cannot.
        self.ingest = Ingest(folder / "ingest", f"unix:{sockets}/ingest")

    def spec(self, name: str, spool: str = "spool", **more: Any) -> Spec:
        """Return the instructions for a node of this world."""
        target = more.pop("target", self.ingest.target)
        return Spec(target, self.folder / spool, self.folder, name, **more)

    def start_or_die(self) -> bool:
        """Start the server, and sometimes kill it during the start; return False if killed."""
        if self.chance.random() < 0.3:
            with suppress(CommandError):
                self.ingest.start(patience=self.chance.uniform(0.05, 1.0))
            self.ingest.kill()
            return False
        self.ingest.start()
        return True

    def wait_for_commit(self, seconds: float = 5.0) -> bool:
        """Wait until the server writes to its database; return False if it does not."""
        before = self._written()
        return eventually(lambda: self._written() != before, seconds)

    def finish(self, spools: Iterable[str] = ("spool",), *, are_damaged: bool = False) -> Audit:
        """Wait until the rest of the spools is committed, and run the auditor.

        Args:
            spools: folders of the spools.
            are_damaged: True if damage may still be found in them.
        """
        if not self.ingest.is_running:
            self.ingest.start()
        for spool in spools:
            found_damaged = drain(self.spec("drain", spool))
            assert are_damaged or not found_damaged
        self.ingest.stop()
        counts = audit(self.ingest.database, read_lives(self.folder))
        counts.check()
        return counts

    def _written(self) -> list[tuple[int, int]]:
        files = sorted(self.ingest.database.parent.glob(f"{self.ingest.database.name}*"))
        with suppress(FileNotFoundError):  # a checkpoint deletes the write-ahead log
            return [(stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, files)]
        return []


@contextmanager
def running_world(folder: Path, seed: int) -> Iterator[World]:
    """Yield a world, and end its server afterwards."""
    with tempfile.TemporaryDirectory() as sockets:
        world = World(folder, sockets, seed)
        try:
            yield world
        finally:
            world.ingest.kill()


def several(fault: Fault, folder: Path, runs: int) -> list[Audit]:
    """Run a fault in several worlds at once, because each waits most of the time."""

    def run(seed: int) -> Audit:
        with running_world(folder / f"world{seed}", seed) as world:
            return fault(world, runs // WORLDS)

    with ThreadPoolExecutor(WORLDS) as pool:
        return list(pool.map(run, range(WORLDS)))


def campaign(name: str, runs: int, audits: Iterable[Audit], note: str = "") -> Campaign:
    """Return the verdict over several worlds.

    Args:
        name: name of the fault.
        runs: number of tries.
        audits: audit of each world.
        note: remark for the table.
    """
    results = list(audits)
    stored, gaps = (
        sum(result.stored for result in results),
        sum(result.gap_sequences for result in results),
    )
    return Campaign(
        name,
        runs,
        lost=sum(result.lost for result in results),
        doubled=sum(result.doubled for result in results),
        undeclared=sum(result.undeclared for result in results),
        note=f"{stored} predictions stored, {gaps} in gaps" + (f"; {note}" if note else ""),
    )
