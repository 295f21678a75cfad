"""Modes of the files that services and nodes create, with an empty umask."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edge.spool.file import SpoolFile
from inference_service.idempotency.sqlite_store import SqliteStore
from inference_service.uploads.index import Index
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.private_files import make_private
from tests.integration.auth.services import Client, serving


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Return the mode of every file and folder below a folder, in octal."""
    return {
        str(path.relative_to(folder)): f"{stat.S_IMODE(path.lstat().st_mode):o}"
        for path in folder.rglob("*")
    }


def test_the_database_of_ingest_and_its_log_are_private(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    database = ["--database", str(tmp_path / "data" / "log.duckdb")]
    with serving("ingest_service", tmp_path, *database) as service:
        assert Client(service).log("gate-1").accepted == 1
        assert modes(tmp_path / "data") == dict.fromkeys(
            ["log.duckdb", "log.duckdb.wal", "log.duckdb.mark"], "600"
        )
    (tmp_path / "data" / "log.duckdb").chmod(0o640)
    with serving("ingest_service", tmp_path, *database) as service:  # its log is made anew
        assert Client(service).log("gate-1").accepted == 1
        assert modes(tmp_path / "data") == {
            "log.duckdb": "640",
            "log.duckdb.wal": "600",
            "log.duckdb.mark": "600",
        }


def test_what_is_for_others_stays_for_others(tmp_path: Path) -> None:
    out, socket = tmp_path / "out" / "deeper", tmp_path / "ingest.sock"
    flags = ["--database", str(tmp_path / "log.duckdb"), "--listen", f"unix:{socket}"]
    with serving("ingest_service", tmp_path, *flags) as service:
        assert Client(service).log("gate-1").accepted == 1
        assert stat.S_IMODE(socket.stat().st_mode) == 0o777
    exported = _export(tmp_path / "log.duckdb", out)
    assert exported
    assert set(modes(tmp_path / "out").values()) == {"777", "666"}


def _export(database: Path, to: Path) -> int:
    command = [str(Path(sys.executable).with_name("sightline")), "export"]
    done = subprocess.run(
        [*command, "--database", str(database), "--to", str(to)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(json.loads(done.stdout)["files"])


def test_sqlite_databases_and_their_logs_are_private(tmp_path: Path) -> None:
    for name in ("claims", "uploads", "keys", "spool"):
        (tmp_path / name).mkdir()
    KeyFile(tmp_path / "keys" / "k.db").create("a", devices=["*"], scopes=[Scope.LOG])
    with (
        closing(SqliteStore(str(tmp_path / "claims" / "c.db"))),
        closing(Index(tmp_path / "uploads" / "u.db")),
        closing(SpoolFile(tmp_path / "spool" / "s.db", "gate-1")),
    ):
        all_modes = modes(tmp_path)
    files = {name: mode for name, mode in all_modes.items() if "/" in name}
    assert {"claims/c.db-wal", "claims/c.db-shm", "uploads/u.db-wal"} < files.keys()
    assert set(files.values()) == {"600"}


def test_a_file_that_is_there_keeps_its_mode_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("kept")
    (tmp_path / "a").chmod(0o644)
    make_private(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "kept"
    assert modes(tmp_path) == {"a": "644"}
    make_private(tmp_path / "nowhere" / "b")  # SQLite says why it cannot be
