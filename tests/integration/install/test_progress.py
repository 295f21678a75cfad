"""Tests of the progress that `make` shows while it sets up an environment."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["demo", "setup"])
def test_setting_up_says_what_it_does(target: str, tmp_path: Path) -> None:
    """Seen in what make would run: pip, without --quiet, names and counts each download."""
    done = subprocess.run(
        ["make", "--dry-run", f"VENV={tmp_path / 'venv'}", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    (large,) = [n for n, line in enumerate(lines) if "pip install" in line and "editable" in line]
    assert "minutes, this once" in lines[large - 1]
    assert "--quiet" not in lines[large]
