"""A node's shipper against a scripted server, for tests."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge.channel import Endpoint
from edge.log.encode import prediction_body
from edge.records import Prediction
from edge.ship.progress import Progress
from edge.ship.shipper import Shipper
from edge.spool.caps import SpoolLimits
from edge.spool.entries import Dropped
from edge.spool.spool import Spool
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.samples import eventually


@dataclass
class Node:
    """A spool and its shipper."""

    folder: Path
    target: str
    batch_size: int = 4
    stream_size: int = 16
    batch_timeout_seconds: float = 0.0
    progress: Progress = field(default_factory=Progress)
    count: int = 0

    def __post_init__(self) -> None:
        limits = SpoolLimits(1 << 40, 0.0, 0)
        self.spool = Spool(self.folder, "gate-1", limits, self.progress.lost)

    def log(self, count: int, *more: bytes | Dropped) -> None:
        bodies: list[bytes | Dropped] = [
            prediction_body(Prediction(f"i{self.count + n}", "m"), 0.0) for n in range(1, count + 1)
        ]
        self.count += count
        with self.progress.update():
            self.spool.append([*bodies, *more])

    @contextmanager
    def shipping(self) -> Iterator["Node"]:
        shipper = Shipper(
            self.spool,
            Endpoint(self.target),
            self.progress,
            batch_size=self.batch_size,
            batch_timeout_seconds=self.batch_timeout_seconds,
            stream_size=self.stream_size,
        )
        thread = threading.Thread(target=shipper.run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            begun = time.monotonic()
            shipper.stop()
            thread.join(20)
            assert not thread.is_alive()
            assert time.monotonic() - begun < 5

    def is_empty(self, seconds: float = 20.0) -> bool:
        return eventually(lambda: self.spool.identity.pending == 0, seconds)


@pytest.fixture
def ingest() -> Iterator[FakeIngest]:
    with FakeIngest() as service:
        yield service


@pytest.fixture
def node(tmp_path: Path, ingest: FakeIngest) -> Iterator[Node]:
    node = Node(tmp_path, ingest.target)
    yield node
    node.spool.close()


def images(count: int) -> list[str]:
    return [f"i{number}" for number in range(1, count + 1)]
