"""The photographs that ultralytics brings: `bus.jpg` and `zidane.jpg`."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def photograph(name: str) -> Path:
    """Return the path of a photograph; skip the test if ultralytics is not installed."""
    spec = find_spec("ultralytics")
    if spec is None or spec.origin is None:
        pytest.skip("the photographs come with ultralytics, which is not installed")
    return Path(spec.origin).parent / "assets" / name
