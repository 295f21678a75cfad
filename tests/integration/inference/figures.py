"""Figures of a server from its metrics address."""

import time
import urllib.request
from collections.abc import Callable, Mapping

from tests.integration.inference.process import InferenceProcess

Figures = Mapping[str, float]
"""By metric with its labels, as they are printed: `name{label="value"}`."""
_PATIENCE_SECONDS = 30.0


def figures(server: InferenceProcess) -> Figures:
    """Return what the server says now."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def until(server: InferenceProcess, condition: Callable[[Figures], bool]) -> Figures:
    """Wait until the figures are so, and return them."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not condition(current := figures(server)):
        assert time.monotonic() < end, {n: v for n, v in current.items() if "_bucket" not in n}
        time.sleep(0.005)
    return current


def grown(before: Figures, after: Figures, name: str) -> float:
    """Return by how much one figure has grown; one that is not there is 0."""
    return after.get(name, 0.0) - before.get(name, 0.0)
