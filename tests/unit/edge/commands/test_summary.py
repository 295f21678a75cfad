"""The counts of predictions in the summary of a run."""

import sqlite3
import time
from pathlib import Path

import pytest

from edge.commands.summary import print_summary
from edge.decide.policy import Mode, Policy
from edge.detect.base import DetectorResult, Image
from edge.sources.frame import FrameSource
from edge.sources.pictures import PictureFiles
from edge.spool.spool import Spool
from edge.tally import NodeStats
from sightline import EdgeNode, PredictionLogger
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.samples import eventually
from tests.unit.edge.sources.monitors import save_pictures


class Blank:
    name, version = "blank", "1"

    def detect(self, image: Image) -> DetectorResult:
        return DetectorResult((), 64, 48, self.name, self.version)


def fail(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def summarise(stats: NodeStats, *sources: FrameSource, interrupted: bool = False) -> None:
    print_summary(
        {"gate-1": stats},
        sources,
        {"gate-1": {}},
        as_json=False,
        per_source=False,
        interrupted=interrupted,
    )


def node_with(logger: PredictionLogger) -> EdgeNode:
    return EdgeNode(Blank(), None, logger, Policy(mode=Mode.DEVICE))


def test_a_total_loss_is_no_commit_and_has_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg")
    logger = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path / "spool")
    with node_with(logger) as node, monkeypatch.context() as patch:
        patch.setattr(logger._pipeline._writer, "_patience_seconds", 0.0)
        patch.setattr(Spool, "append", fail)
        list(node.run(folder))
        assert eventually(lambda: logger.stats().dropped == {"spool_write_failed": 2})
        stats = node.stats()
    summarise(stats)
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[1]
        == "2 predictions logged, 2 dropped (the spool could not be written), none committed"
    )
    assert lines[2] == "Last error of the log of gate-1: database or disk is full"
    assert lines[3] == "Next: sightline doctor"


def test_what_a_failing_disk_has_not_taken_yet_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    with FakeIngest() as ingest:
        logger = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=tmp_path / "spool")
        with node_with(logger) as node:
            with monkeypatch.context() as patch:
                patch.setattr(Spool, "append", fail)
                list(node.run(folder))
                assert eventually(lambda: logger.stats().last_error is not None)
                stats = node.stats()
            summarise(stats)
            assert logger.flush(20, until="committed")
            summarise(node.stats())
    lines = capsys.readouterr().out.splitlines()
    before, after = [line for line in lines if "logged" in line]
    next_before, next_after = [line for line in lines if line.startswith("Next: ")]
    assert before == "1 prediction logged, 1 not written to the spool"
    assert after == "1 prediction logged, all committed"
    assert (next_before, next_after) == (
        "Next: sightline doctor",
        "Next: sightline stats --device gate-1",
    )


class Slow(Blank):
    def detect(self, image: Image) -> DetectorResult:
        time.sleep(0.05)
        return super().detect(image)


def test_files_that_an_interruption_leaves_are_not_dropped_for_slowness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pictures(tmp_path / "pictures", *(f"{number:02}.jpg" for number in range(40)))
    logger = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path / "spool")
    source = PictureFiles(folder)
    with EdgeNode(Slow(), None, logger, Policy(mode=Mode.DEVICE)) as node:
        for _ in node.run(source):
            break
        assert eventually(lambda: node.stats().sources[str(folder)].waiting == 0)
        stats = node.stats()
    summarise(stats, source, interrupted=True)
    line = capsys.readouterr().out.splitlines()[0]
    answered = stats.pictures.by_device
    assert stats.sources[str(folder)].stopped > 0
    assert line.endswith(f"{40 - answered} not answered because the run was interrupted")
    assert "took too long" not in line


class Broken(Blank):
    def detect(self, image: Image) -> DetectorResult:
        raise RuntimeError("CUDA error 700")


def test_nothing_logged_leads_to_the_doctor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    logger = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path / "spool")
    with EdgeNode(Broken(), None, logger, Policy(mode=Mode.DEVICE)) as node:
        list(node.run(folder))
        summarise(node.stats())
    assert capsys.readouterr().out.splitlines()[1:] == [
        "0 predictions logged",
        "Next: sightline doctor",
    ]
