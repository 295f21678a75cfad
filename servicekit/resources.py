"""The share of the machine that this process may use: CPUs, memory and open files.

A container, a systemd unit or `taskset` gives a process less than the machine has. The limits are
those of the process's own control groups and of all groups above it, in version 1 (a folder per
controller) and version 2 (one folder) of Linux's cgroups.
"""

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_ROOT = Path("/")
_OTHER_FILES = 256
"""Files that a service has open besides its connections, at most."""
_UNLIMITED_BYTES = 1 << 60
"""Limits from here on are none: version 1 writes the largest number of pages."""


def cpus(root: Path = _ROOT) -> int:
    """Return the number of CPUs that this process may use, at least 1.

    The smaller of the CPUs of its affinity and of its quota, rounded up.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    return max(min([_affinity(), *map(math.ceil, _quotas(root))]), 1)


def are_limited(root: Path = _ROOT) -> bool:
    """Return True if this process may use fewer CPUs than the machine has."""
    return cpus(root) < (os.cpu_count() or 1)


def memory_limit(root: Path = _ROOT) -> int | None:
    """Return the limit on the memory of this process's control groups, bytes; None: there is none.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    files = [*_files(root, "memory", "memory.limit_in_bytes"), *_files(root, "", "memory.max")]
    limits = [number for number in map(_number, files) if number is not None]
    return min((limit for limit in limits if limit < _UNLIMITED_BYTES), default=None)


def memory(root: Path = _ROOT) -> int | None:
    """Return the memory that this process may use, bytes; None: it is not known."""
    known = [memory_limit(root), _physical()]
    return min((size for size in known if size is not None), default=None)


def allow_open_files(count: int) -> int | None:
    """Raise this process's limit on open files to `count` if it may, and return the limit.

    Returns:
        The limit, which is less than `count` if the hard limit is; None: there is none.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if wanted > soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allow_connections(count: int) -> None:
    """Raise the limit on open files for the connections; log a warning if it stays too low."""
    wanted = count + _OTHER_FILES
    limit = allow_open_files(wanted)
    if limit is not None and limit < wanted:
        logger.warning(
            "max_connections is %d, but this process may open only %d files: further connections"
            " will fail; raise the limit (ulimit -n, LimitNOFILE) or lower max_connections",
            count,
            limit,
        )


def _affinity() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on this system
        return None


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas on CPU time, in CPUs."""
    for file in _files(root, "", "cpu.max"):  # such as "150000 100000"; "max 100000": none
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = file.read_text().split()
            yield int(quota) / int(period)
    for file in _files(root, "cpu", "cpu.cfs_quota_us"):
        quota_us, period_us = _number(file), _number(file.with_name("cpu.cfs_period_us"))
        if quota_us and period_us and quota_us > 0:  # -1: none
            yield quota_us / period_us


def _number(file: Path) -> int | None:
    """Return the number in a file; None: it cannot be read, or says `max`."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _files(root: Path, controller: str, name: str) -> Iterator[Path]:
    """Yield the paths of a file in the process's group of a controller, and in all groups above.

    Args:
        root: folder that holds `proc` and `sys`.
        controller: of version 1; empty: version 2.
        name: name of the file.
    """
    group = _group(root, controller)
    for mounted, folder in _mounts(root, controller):
        # In a container without a cgroup namespace the mount begins at the container's own group,
        # and the group's path is that outside of the container.
        within = group.removeprefix(mounted.rstrip("/")) if group.startswith(mounted) else ""
        place = root / folder.strip("/") / within.strip("/")
        top = root / folder.strip("/")
        yield from (at / name for at in (place, *place.parents) if at.is_relative_to(top))


def _group(root: Path, controller: str) -> str:
    """Return the path of this process's group, such as `/user.slice`; empty: there is none."""
    for fields in _lines(root / "proc/self/cgroup", ":", 2):
        if len(fields) == 3 and controller in fields[1].split(","):
            return fields[2]
    return ""


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, str]]:
    """Yield the group at the root of each mount of a controller, and the mount's folder."""
    for fields in _lines(root / "proc/self/mountinfo", " ", -1):
        if "-" not in fields or len(fields) < 10:
            continue
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind == ("cgroup" if controller else "cgroup2") and controller in {*options, ""}:
            yield fields[3], fields[4]


def _lines(file: Path, separator: str, splits: int) -> Iterator[list[str]]:
    with suppress(OSError, UnicodeDecodeError):
        for line in file.read_text().splitlines():
            yield line.split(separator, splits)
