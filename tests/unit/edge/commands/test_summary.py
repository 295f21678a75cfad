"""What the summary of a run says about its predictions."""

import sqlite3
from pathlib import Path

import pytest

from edge.commands.summary import print_summary
from edge.decide.policy import Mode, Policy
from edge.detect.base import DetectorResult, Image
from edge.spool.spool import Spool
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
    print_summary({"gate-1": stats}, [], None, as_json=False, per_source=False)
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[1]
        == "2 predictions logged, 2 dropped (the spool could not be written), none committed"
    )
    assert lines[2] == "Last error of the log of gate-1: database or disk is full"


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
            print_summary({"gate-1": stats}, [], None, as_json=False, per_source=False)
            assert logger.flush(20, until="committed")
            print_summary({"gate-1": node.stats()}, [], None, as_json=False, per_source=False)
    before, after = [line for line in capsys.readouterr().out.splitlines() if "logged" in line]
    assert before == "1 prediction logged, 1 not written to the spool"
    assert after == "1 prediction logged, all committed"
