import logging
from collections.abc import Iterator

import pytest

from servicekit.telemetry import access_log
from tests.unit.servicekit.echo import KINDS


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def restore_root() -> Iterator[None]:
    """For tests that configure the log of the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    access_log.write_json(None)
