"""A run like that of `make test` with a crash in it: it ends, and tells each failure at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASSES = "def test_{}() -> None:\n    pass\n"
CRASHES = "def test_crash() -> None:\n    import os\n    os.kill(os.getpid(), 11)\n"
FAILS = "def test_wrong() -> None:\n    print('printed before')\n    assert [1, 2] == [1, 3]\n"


LAST_WORDS = """
import os

def pytest_sessionfinish(session):
    if getattr(session.config, "workerinput", {}).get("workerid") == "gw0":
        os.kill(os.getpid(), 11)
"""


def run(folder: Path, **files: str) -> "subprocess.CompletedProcess[str]":
    """Run tests as `make test` does, with this checkout's conftest.py."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    (parallel,) = re.findall(r"^PARALLEL := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", *parallel.split(), "2"],
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.slow
def test_a_run_ends_after_a_crash_and_has_told_each_failure_before(tmp_path: Path) -> None:
    """With `--dist loadfile` this waits for ever."""
    passes = "".join(PASSES.format(number) for number in range(3))
    done = run(tmp_path, test_a=FAILS + passes, test_b=CRASHES + passes, test_c=passes)
    assert done.returncode == 1, done.stdout
    assert "2 failed, 9 passed" in done.stdout
    told, summary, _ = done.stdout.partition("= FAILURES =")
    assert summary
    assert "test_a.py::test_wrong" in told
    assert "At index 1 diff: 2 != 3" in told
    assert "printed before" in told
    assert "crashed while running 'test_b.py::test_crash'" in told
    assert "in test_crash" in done.stderr, "the traceback of the crash"


@pytest.mark.slow
def test_a_crash_beside_the_tests_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, test_a="".join(map(PASSES.format, range(4))), conftest=LAST_WORDS)
    assert "4 passed" in done.stdout
    assert "node down" in done.stdout
    assert done.returncode == 1, done.stdout
