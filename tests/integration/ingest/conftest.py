from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.ingest.process import Server

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a server with these flags; it is killed after the test."""
    started: list[Server] = []

    def make(*flags: str) -> Server:
        server = Server(tmp_path, *flags)
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.kill()


@pytest.fixture
def server(start: Start) -> Server:
    return start()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that store nothing."""
    server = Server(tmp_path_factory.mktemp("shared"))
    server.start()
    yield server
    server.kill()
