"""Spools and disks with real faults."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.commands.options import settings_with
from edge.doctor import disk
from edge.doctor.finding import Finding, Level
from edge.records import Prediction
from edge.settings import EdgeSettings
from sightline import PredictionLogger

NOBODY = 65534


def settings(folder: Path, **more: Any) -> EdgeSettings:
    return settings_with(device_id="gate-1", spool_dir=folder, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A spool with ten predictions that nobody took."""
    place = tmp_path / "spool"
    with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=place) as log:
        for number in range(10):
            log(Prediction(f"i{number}", "m"))
        log.flush(10)
    return place


def found(folder: Path, **more: Any) -> dict[str, Finding]:
    return {one.check: one for one in disk.spool(settings(folder, **more))}


def overwrite_schema(folder: Path) -> None:
    """Write the log into the file, and makes its table unreadable."""
    for path in (folder / "spool.db", folder / "spool.db-wal"):
        data = path.read_bytes() if path.exists() else b""
        path.write_bytes(data.replace(b"CREATE TABLE predictions", b"CREATE TABLE predicti*ns"))


def test_a_sound_spool_and_what_waits_in_it(folder: Path) -> None:
    findings = found(folder)
    assert {one.level for one in findings.values()} == {Level.OK}
    assert "sound" in findings["spool"].message
    assert findings["spool backlog"].message.startswith("10 predictions wait")


def test_nothing_is_made_or_changed(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir() if path.suffix != ".db-shm"}
    found(folder)
    found(tmp_path / "none" / "yet")
    after = {path: path.read_bytes() for path in folder.iterdir() if path.suffix != ".db-shm"}
    assert after == before
    assert not (tmp_path / "none").exists()


def test_no_spool_yet(tmp_path: Path) -> None:
    findings = found(tmp_path / "none" / "yet")
    assert {one.level for one in findings.values()} == {Level.OK}
    assert "nothing waits" in findings["spool"].message


def test_a_damaged_spool_is_repaired_by_what_is_said(folder: Path) -> None:
    overwrite_schema(folder)
    finding = found(folder)["spool"]
    assert finding.level is Level.FAILED
    assert "is damaged" in finding.message
    assert f"sightline spool repair {folder}" in finding.action


def test_a_file_that_was_set_aside_is_a_warning(folder: Path) -> None:
    (folder / "spool.damaged-1.db").write_bytes(b"no database")
    finding = found(folder)["spool set aside"]
    assert finding.level is Level.WARNING
    assert "spool.damaged-1.db" in finding.action


def test_a_spool_of_another_device(folder: Path) -> None:
    other = settings_with(device_id="gate-2", spool_dir=folder)
    findings = {one.check: one for one in disk.spool(other)}
    assert findings["spool"].level is Level.FAILED
    assert "gate-1" in findings["spool"].message


def test_a_spool_that_is_nearly_full(folder: Path) -> None:
    with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=folder) as log:
        for _ in range(1600):
            log(Prediction("i" * 500, "m"))
        log.flush(10)
    finding = found(folder, spool_bytes=1 << 20)["spool backlog"]
    assert finding.level is Level.WARNING
    assert "nearly" in finding.message


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = found(tmp_path / "file")["spool folder"]
    assert finding.level is Level.FAILED
    assert "SIGHTLINE_EDGE_SPOOL_DIR" in finding.action


@contextmanager
def without_rights() -> Iterator[Path]:
    """A folder that may be read, seen by a user who may do no more."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        user = os.geteuid()
        if user == 0:  # root may write everywhere
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


def test_no_permission() -> None:
    with without_rights() as place:
        findings = [found(place)["spool folder"], found(place / "below")["spool folder"]]
    for finding in findings:
        assert finding.level is Level.FAILED
        assert "Permission denied" in finding.message
        assert "SIGHTLINE_EDGE_SPOOL_DIR" in finding.action


def test_a_folder_inside_one_that_is_closed(folder: Path) -> None:
    folder.parent.chmod(0o700)
    with without_rights():
        findings = found(folder)
    if os.geteuid() == 0:
        assert findings["spool folder"].level is Level.FAILED


def test_a_place_where_nobody_may_write() -> None:
    finding = found(Path("/proc/sightline"))["spool folder"]
    assert finding.level is Level.FAILED
    assert "cannot be written to" in finding.message


@pytest.mark.parametrize(
    ("more", "level"),
    [
        ({"spool_bytes": 1 << 20, "disk_reserve_bytes": 0}, Level.OK),
        ({"spool_bytes": 1 << 50, "disk_reserve_bytes": 0}, Level.WARNING),
        ({"disk_reserve_bytes": 1 << 50}, Level.FAILED),
    ],
)
def test_the_disk_has_room_for_what_is_set(tmp_path: Path, more: Any, level: Level) -> None:
    finding = disk.disk(settings(tmp_path / "none", **more))
    assert finding.level is level
    assert (finding.action == "") == (level is Level.OK)
