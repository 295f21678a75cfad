"""The share of the machine that this process may use, as `sightline doctor` reports it."""

import os

from edge.doctor.finding import Finding, ok
from servicekit import resources


def machine() -> Finding:
    """Return a finding with the CPUs and the memory that this process may use."""
    memory = resources.memory()
    size = "unknown" if memory is None else f"{memory / (1 << 30):.1f} GiB"
    text = f"this process may use {resources.cpus()} of {os.cpu_count() or 1} CPUs"
    return ok("machine", f"{text} and {size} of memory")
