"""Work in a process of its own whose address space is bounded, in many sizes."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = """
import json, os, re, resource, sys
sys.path.insert(0, os.getcwd())
{setup}

def limit(extra):
    status = open("/proc/self/status").read()
    size = int(re.search(r"VmSize:\\s+(\\d+)", status)[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.RLIM_INFINITY))

found = []
for extra in {extras}:
    before = prepare()
    limit(extra)
    try:
        work(before)
        outcome = "done"
    except BaseException as error:
        outcome = type(error).__name__
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    found.append(outcome)
print(json.dumps(found))
"""
_AT_ONCE = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_ARENA_MAX": "1",
}
"""Has malloc give memory back at once: what one try has freed must not feed the next."""


def outcomes(setup: str, extras: Sequence[int]) -> list[str]:
    """Return the results of the work with more memory each time: done, or an error's name.

    Args:
        setup: Python that defines `prepare() -> before` and `work(before)`.
        extras: bytes that each try may take.
    """
    script = _SCRIPT.format(setup=textwrap.dedent(setup), extras=list(extras))
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, **_AT_ONCE},
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


def headroom(pid: int, extra: int | None) -> None:
    """Limit the address space of a process to its current size plus some bytes; None: no limit."""
    import resource

    size = resource.RLIM_INFINITY
    if extra is not None:
        status = Path(f"/proc/{pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmSize:")]
        size = int(line.split()[1]) * 1024 + extra
    resource.prlimit(pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
