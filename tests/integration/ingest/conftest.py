from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.ingest.process import IngestProcess

Start = Callable[..., IngestProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a server with these flags; it is killed after the test."""
    started: list[IngestProcess] = []

    def make(*flags: str) -> IngestProcess:
        server = IngestProcess(tmp_path, *flags)
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.kill()


@pytest.fixture
def server(start: Start) -> IngestProcess:
    return start()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestProcess]:
    """A server for tests that store nothing."""
    server = IngestProcess(tmp_path_factory.mktemp("shared"))
    server.start()
    yield server
    server.kill()
