"""Logging goes on after a fork, in the parent and in the child, and each arrives once."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes.ingest import FakeIngest

NODE = Path(__file__).with_name("forking_node.py")


def run(ingest: FakeIngest, folder: Path, case: str, children: int, predictions: int) -> list[str]:
    """Runs the node and returns what parent and children say they have logged."""
    arguments = [ingest.target, str(folder), case, str(children), str(predictions)]
    result = subprocess.run(
        [sys.executable, str(NODE), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    expected_code = 9 if case in ("orphans", "flush") else 0
    assert said["codes"] == [expected_code] * children, result.stderr
    logged: list[str] = said["logged"]
    if case == "flush":
        assert said["flushed"]
        assert said["left"] == 0, "flush said that all is committed"
        assert said["seconds"] < children, "a second for each child"
    if case != "silent":
        logged += [f"child{c}/{n}" for c in range(children) for n in range(predictions)]
    return logged


def test_flush_waits_for_the_spools_of_ended_children(tmp_path: Path) -> None:
    with FakeIngest() as ingest:
        logged = run(ingest, tmp_path, "flush", children=20, predictions=5)
        assert Counter(ingest.images()) == Counter(logged)


@pytest.mark.parametrize("case", ["close", "exit", "orphans", "os_exit", "silent"])
def test_every_prediction_of_parent_and_children_arrives_once(tmp_path: Path, case: str) -> None:
    with FakeIngest() as ingest:
        logged = run(ingest, tmp_path, case, children=8, predictions=40)
        found = Counter(ingest.images())
        # What a child logged in its last 50 ms is lost with it, or is there once like the rest.
        late = {name: found.pop(name) for name in list(found) if "/late/" in name}
        assert found == Counter(logged)
        assert set(late.values()) <= {1}
        assert case == "os_exit" or not late
        for stored in ingest.spools.values():
            stored.check()
            assert stored.gaps == []
        assert len(ingest.spools) == (1 if case == "silent" else 9)
        assert {device for device, _ in ingest.spools} == {"gate-1"}
    assert not list(tmp_path.glob("spool.damaged*"))
