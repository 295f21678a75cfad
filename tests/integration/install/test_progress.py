"""Tests of what `make` shows, and installs, when it sets up an environment."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def dry_run(target: str, venv: Path) -> list[str]:
    """Return the commands that make would run."""
    done = subprocess.run(
        ["make", "--dry-run", f"VENV={venv}", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("target", ["demo", "setup"])
def test_setting_up_says_what_it_does(target: str, tmp_path: Path) -> None:
    """Seen in what make would run: pip, without --quiet, names and counts each download."""
    lines = dry_run(target, tmp_path / "venv")
    (large,) = [n for n, line in enumerate(lines) if "pip install" in line and "editable" in line]
    assert "minutes, this once" in lines[large - 1]
    assert "--quiet" not in lines[large]


def test_the_demo_brings_no_gpu_build(tmp_path: Path) -> None:
    (install,) = [line for line in dry_run("demo", tmp_path / "venv") if "--editable" in line]
    assert "[ingest,inference-cpu,console]" in install
    assert f"PIP_CONSTRAINT={tmp_path / 'venv'}" in install


def test_the_demo_runs_in_the_environment_of_the_tests(tmp_path: Path) -> None:
    """Its build of ONNX Runtime would install over that of the tests."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / ".test").touch()
    assert not [line for line in dry_run("demo", tmp_path) if "pip" in line]
