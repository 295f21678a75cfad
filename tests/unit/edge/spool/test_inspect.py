"""Inspection of a spool while a process writes to it."""

import threading
from pathlib import Path

from edge.spool.inspect import details, summary, verify
from tests.unit.edge.spool.test_spool import body, opened


def test_a_spool_that_changes_all_the_time_is_sound(tmp_path: Path) -> None:
    rig, stopping = opened(tmp_path), threading.Event()

    def change() -> None:
        while not stopping.is_set():
            rig.spool.append([body()] * 3)
            rig.spool.acknowledge(rig.id, rig.spool.identity.last - 2)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(150):
            verdict = verify(tmp_path / "spool.db")
            assert verdict.is_sound, verdict
            assert summary(tmp_path / "spool.db").problem is None
        assert details(tmp_path / "spool.db", 1).summary.device_id == "gate-1"
    finally:
        stopping.set()
        thread.join()
        rig.spool.close()
