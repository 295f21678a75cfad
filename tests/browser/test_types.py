"""The page's modules keep their types."""

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TSC = HERE / "node_modules/.bin/tsc"


def test_types() -> None:
    if not TSC.exists():
        sentence = "there is no tsc here: `make compat` installs it where npm is"
        if os.environ.get("SIGHTLINE_REQUIRE_COMPAT"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    checked = subprocess.run(
        [TSC, "--project", HERE], capture_output=True, text=True, timeout=120, check=False
    )
    assert checked.returncode == 0, checked.stdout
