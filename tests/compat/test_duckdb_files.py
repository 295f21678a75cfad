"""Item 24: tests of each pair of DuckDB version and file, and of Sightline version and file.

The other DuckDBs are in folders of their own (`make compat`), which come before the environment's.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest

from tests.compat import next_duckdb
from tests.compat.conftest import ROOT
from tests.integration.ingest.process import IngestProcess
from tests.pages import text
from tests.unit.ingest_service.samples import header, predictions, request

OLDEST, NEXT = "1.4.4", "2.0.1"
QUERY = "SELECT count(*), count(DISTINCT sequence), min(balanced) FROM predictions, ledger"
READ = f"import sys, duckdb; print(*duckdb.connect(sys.argv[1]).execute('{QUERY}').fetchone())"


def other(version: str) -> Path:
    """Return the folder of a DuckDB version; skip the test if it is missing."""
    folder = ROOT / "build/duckdb" / version
    if not (folder / ".installed").exists():  # touched last
        pytest.skip(f"DuckDB {version} is not here: `make compat` installs it")
    return folder


@contextmanager
def running(server: IngestProcess, version: str = "") -> Iterator[IngestProcess]:
    """Run a service on another DuckDB; empty for the environment's own."""
    with pytest.MonkeyPatch.context() as patch:
        if version:
            patch.setenv("PYTHONPATH", str(other(version)))
        server.start()
    try:
        yield server
    finally:
        server.kill()


def log(server: IngestProcess, first: int, last: int) -> None:
    answer = server.log_messages(request(*predictions(first, last), head=header()))
    assert answer.committed_through == last


def read(database: Path, version: str) -> str:
    """Read a copy, log included, with a DuckDB: return rows, distinct rows and the balance."""
    copy = database.with_name(f"copy-{version}.duckdb")
    shutil.copy(database, copy)
    if (log := database.with_name(f"{database.name}.wal")).exists():
        shutil.copy(log, copy.with_name(f"{copy.name}.wal"))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(copy)],
        env={**os.environ, "PYTHONPATH": str(other(version))},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("version", [OLDEST, NEXT])
def test_other_duckdbs_read_what_a_stopped_service_has_stored(tmp_path: Path, version: str) -> None:
    server = IngestProcess(tmp_path)
    with running(server):
        log(server, 1, 3)
        server.stop()
    assert read(server.database, version) == "3 3 True"


def test_the_next_duckdb_takes_a_file_up_and_ours_takes_it_back(tmp_path: Path) -> None:
    server = IngestProcess(tmp_path)
    with running(server):
        log(server, 1, 3)  # killed: its log is left for the next
    with running(server, NEXT):
        log(server, 4, 6)
        server.stop()
    with running(server):
        log(server, 7, 9)
        server.stop()
    assert read(server.database, NEXT) == "9 9 True"


def test_a_file_that_the_next_duckdb_has_made_is_refused_in_a_sentence(
    tmp_path: Path,
) -> None:
    server = IngestProcess(tmp_path)
    script = "import sys, duckdb; duckdb.connect(sys.argv[1]).execute('CREATE TABLE t (i INTEGER)')"
    subprocess.run(
        [sys.executable, "-c", script, str(server.database)],
        env={**os.environ, "PYTHONPATH": str(other(NEXT))},
        timeout=60,
        check=True,
    )
    before = server.database.read_bytes()
    process = server.spawn()
    assert process.wait(60) == 1
    assert process.stdout is not None
    process.stdout.close()
    (line,) = server.log.read_text().splitlines()[-1:]
    assert "newer DuckDB" in line
    assert str(server.database) in line
    assert server.database.read_bytes() == before


def test_duckdb_has_an_upper_bound_that_ours_is_within() -> None:
    bound = next_duckdb.bound()
    assert bound.specifier.contains(metadata.version("duckdb"))
    assert not bound.specifier.contains(NEXT)
    assert not bound.specifier.contains("1.6.0")


def test_the_docs_name_the_bound_and_what_was_tried() -> None:
    page = text("how-to/upgrade.md")
    (low, high) = sorted(specifier.version for specifier in next_duckdb.bound().specifier)
    for version in (f"{low} or newer, below {high}", OLDEST, NEXT):
        assert version in page


def test_make_next_gives_up_on_a_registry_that_does_not_answer(tmp_path: Path) -> None:
    slow = (sys.executable, "-c", "import time; time.sleep(60)")
    began = time.monotonic()
    assert next_duckdb.install(tmp_path, 0.5, slow) is None
    assert time.monotonic() - began < 30
    failing = (sys.executable, "-c", "import sys; sys.exit('no such host')")
    assert next_duckdb.install(tmp_path, 30, failing) is None
    assert "did not bring" in (next_duckdb.verdict(None, next_duckdb.bound()) or "")


def test_make_next_tries_only_what_is_beyond_the_bound() -> None:
    bound = next_duckdb.bound()
    assert "within the bound" in (next_duckdb.verdict("1.5.99", bound) or "")
    assert "older" in (next_duckdb.verdict("1.4.4", bound) or "")
    for version in ("1.6.0.dev1", "1.6.0", NEXT):
        assert next_duckdb.verdict(version, bound) is None
