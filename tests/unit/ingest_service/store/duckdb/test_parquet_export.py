import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import duckdb
import pytest

from ingest_service.store.duckdb import parquet_export
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.parquet_export import UNFINISHED, folder_name
from ingest_service.store.protocol import SpoolKey
from tests.unit.ingest_service.samples import NOW, message, predictions, spool
from tests.unit.ingest_service.store_conformance import commit, exported, update_rollups

ODD_DEVICES = [
    "..",
    "a/b",
    "a\\b",
    "a b=%2F'\"*?",
    "é\N{SNOWMAN}" * 50,
    "x" * 256,
    "x" * 255 + "y",
    "GATE",
    "gate",
    "\0",
]

PROGRAM = """
import os, signal, sys
from datetime import datetime, UTC
from pathlib import Path
from ingest_service.store.duckdb.file_store import DuckDBStore
left = int(sys.argv[3])
def die_at(event, args):
    global left
    if event in ("os.rename", "os.mkdir", "shutil.rmtree", "open") and sys.argv[2] in str(args[0]):
        left -= 1
        if left < 0:
            left = 1000
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die_at)
DuckDBStore(Path(sys.argv[1])).maintenance().export(Path(sys.argv[2]), datetime.now(UTC))
print("done")
"""


@pytest.mark.parametrize("device", ODD_DEVICES)
def test_any_device_has_a_folder_of_its_own(device: str) -> None:
    name = folder_name(device)
    assert len(name.encode()) < 255
    assert "/" not in name
    assert unquote(name, errors="strict")
    assert len({folder_name(device) for device in ODD_DEVICES}) == len(ODD_DEVICES)


def test_devices_with_odd_names_are_exported(tmp_path: Path) -> None:
    store = DuckDBStore(tmp_path / "test.duckdb")
    names = [name for name in ODD_DEVICES if name != "\0"]
    for number, name in enumerate(names):
        of = SpoolKey(name, spool(number).spool_id)
        commit(store, message(*predictions(1, 2), of=of, stream=number))
    update_rollups(store)
    assert store.maintenance().export(tmp_path / "out", NOW) == len(names)
    store.close()
    rows = exported(tmp_path / "out")
    assert sorted(row["device_id"] for row in rows) == sorted(names * 2)
    assert not (tmp_path / "out" / UNFINISHED).exists()
    days = duckdb.sql(
        f"SELECT DISTINCT day::VARCHAR, count(*) FROM '{tmp_path}/out/*/*/*.parquet' GROUP BY ALL"
    ).fetchall()
    assert days == [("2026-11-22", 2 * len(names))]


def test_every_folder_that_is_made_is_durable_before_its_rows_may_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(parquet_export, "_sync", synced.append)
    store = DuckDBStore(tmp_path / "test.duckdb")
    commit(store, message(*predictions(1, 2)))
    update_rollups(store)
    folder = tmp_path / "not" / "there" / "yet"
    assert store.maintenance().export(folder, NOW) == 1
    store.close()
    (file,) = folder.rglob("*.parquet")
    above = [folder for folder in file.parents if folder.is_relative_to(tmp_path)]
    assert not set(above) - set(synced), "a power cut would lose what is marked as exported"


@pytest.mark.slow
def test_an_export_that_is_killed_anywhere_repeats_and_loses_nothing(tmp_path: Path) -> None:
    path, folder = tmp_path / "test.duckdb", tmp_path / "out"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    store = DuckDBStore(path)
    logged = 0
    killed = 0
    for step in range(9):
        for number in (1, 2, 3):
            first = step * 5 + 1
            commit(store, message(*predictions(first, first + 4), of=spool(number)))
            logged += 5
        update_rollups(store)
        store.close()
        arguments = [sys.executable, str(program), str(path), str(folder), str(2 * step)]
        ended = subprocess.run(arguments, check=False, capture_output=True, text=True)
        killed += ended.returncode == -9
        assert ended.returncode in (0, -9), ended.stderr
        store = DuckDBStore(path)
        if step % 3 == 2:
            store.maintenance().export(folder, NOW)
            rows = [(row["device_id"], row["sequence"]) for row in exported(folder)]
            assert len(rows) == len(set(rows)) == logged
    assert killed >= 4, "the kills must come before the end"
    store.close()
