"""Fixtures: clients in other languages, and both services."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.cli.processes import ServiceProcess

ROOT = Path(__file__).parents[2]


def require(program: str | Path, how: str) -> str:
    """Return the program's path; skip the test if it is missing, or fail where CI requires it."""
    path = shutil.which(program)
    if path is None:
        message = f"{Path(program).name} is not here: {how}"
        if os.environ.get("SIGHTLINE_REQUIRE_COMPAT"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def grpcurl() -> str:
    return require(ROOT / ".tools/bin/grpcurl", "`make compat` builds it where Go is installed")


@pytest.fixture(scope="session")
def node() -> str:
    program = require("node", "install Node.js 20 or newer")
    # npm writes this file last, so it stands for a whole install.
    installed = (ROOT / "tests/compat/node/node_modules/.package-lock.json").is_file()
    how = "`make compat` installs @grpc/grpc-js where npm is installed"
    return require(program if installed else "node_modules", how)


@pytest.fixture(scope="session")
def tritonclient() -> str:
    """Return the interpreter that has tritonclient."""
    # Touched last, so it stands for a whole install.
    installed = (ROOT / ".tools/tritonclient/.installed").is_file()
    program = ROOT / ".tools/tritonclient/bin/python"
    return require(program if installed else "tritonclient", "`make compat` installs it")


def _of_prometheus(program: str) -> str:
    # Touched last, so it stands for a whole download.
    installed = (ROOT / ".tools/prometheus/.installed").is_file()
    path = ROOT / ".tools/prometheus/usr/bin" / program
    return require(path if installed else program, "`make compat` downloads it on Debian")


@pytest.fixture(scope="session")
def promtool() -> str:
    return _of_prometheus("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return _of_prometheus("prometheus")


@pytest.fixture(scope="session")
def envoy_program() -> str:
    # Touched last, so it stands for a whole install.
    installed = (ROOT / ".tools/envoy/.installed").is_file()
    path = ROOT / ".tools/envoy/envoy/_bin/envoy"
    return require(path if installed else "envoy", "`make compat` installs it")


@pytest.fixture(scope="session")
def perf_analyzer() -> str:
    path = shutil.which(ROOT / ".tools/tritonclient/bin/perf_analyzer")
    if path is None:
        # Skipped even where CI requires the clients: there are builds for some systems only.
        pytest.skip("perf_analyzer is not here: `make compat` installs it where glibc is 2.38")
    return path


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    database = tmp_path_factory.mktemp("ingest") / "sightline.duckdb"
    flags = ["--listen", "127.0.0.1:0", "--database", str(database)]
    with ServiceProcess("ingest_service", flags) as service:
        yield service


@pytest.fixture(scope="module")
def inference() -> Iterator[ServiceProcess]:
    flags = ["--listen", "127.0.0.1:0", "--model-repository", str(ROOT / "models/repository")]
    with ServiceProcess("inference_service", flags) as service:
        yield service
