"""Checks of the spool and its disk, which change nothing."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge.doctor.finding import Finding, failed, ok, warning
from edge.settings import EdgeSettings
from edge.spool import inspect
from edge.spool.directories import FILE_NAME, default_spool_dir
from edge.spool.inspect import SpoolSummary
from servicekit.errors import SightlineError

_READ_WHOLE_BYTES = 64 << 20  # a second or so
_OLD_SECONDS = 3600.0
_NEARLY_FULL = 0.8


def spool(settings: EdgeSettings) -> Iterator[Finding]:
    """Check the spools of this device."""
    folder = settings.spool_dir or default_spool_dir(settings.device_id)
    yield _writable(folder)
    try:
        files = inspect.below(folder) if _is_there(folder) and folder.is_dir() else []
        if not files:
            yield ok("spool", f"{folder} has no spool yet: nothing waits")
        for file in files:
            yield from _one_spool(file, settings)
    except (OSError, sqlite3.Error, SightlineError) as error:
        yield failed("spool", f"{folder} cannot be read: {error}", "Check who may read it.")


def disk(settings: EdgeSettings) -> Finding:
    """Check the free space for the spool."""
    folder = _existing(settings.spool_dir or default_spool_dir(settings.device_id))
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return failed(
            "disk", f"the free space at {folder} is not known: {error}", "Check spool_dir."
        )
    reserve, cap = settings.disk_reserve_bytes, settings.spool_bytes
    space = f"{_size(free)} are free at {folder}"
    if free <= reserve:
        return failed(
            "disk",
            f"{space}, no more than the reserve of {_size(reserve)}: the spool drops its oldest",
            "Free disk space, move spool_dir, or lower disk_reserve_bytes.",
        )
    if free - reserve < cap:
        return warning(
            "disk",
            f"{space}: too little for a spool of {_size(cap)} and a reserve of {_size(reserve)}",
            "Free disk space, or lower spool_bytes to what there is.",
        )
    return ok("disk", f"{space}, enough for a spool of {_size(cap)}")


def _writable(folder: Path) -> Finding:
    """Write a temporary file: permissions do not show read-only and full disks."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"sightline")
    except OSError as error:
        return failed(
            "spool folder",
            f"{folder} cannot be written to: {error.strerror or error}",
            "Give this user the folder, or set SIGHTLINE_EDGE_SPOOL_DIR to one that it may use.",
        )
    state = "can be written to" if place == folder else "can be created"
    return ok("spool folder", f"{folder} {state}")


def _one_spool(file: Path, settings: EdgeSettings) -> Iterator[Finding]:
    summary = inspect.summary(file)
    if summary.device_id and summary.device_id != settings.device_id:
        yield failed(
            "spool",
            f"{summary.path} is a spool of {summary.device_id}, not of {settings.device_id}",
            "Set device_id back, or give this device a spool_dir of its own.",
        )
        return
    yield _sound(file, summary)
    if summary.set_aside:
        yield warning(
            "spool set aside",
            f"{summary.path} has damaged files: {', '.join(summary.set_aside)}",
            f"Salvage each: `sightline spool repair {summary.path}/{summary.set_aside[0]}`.",
        )
    if summary.problem is None:
        yield _backlog(summary, settings)


def _sound(file: Path, summary: SpoolSummary) -> Finding:
    faults = [summary.problem] if summary.problem else []
    if not faults and summary.bytes > _READ_WHOLE_BYTES:
        text = f"{summary.path} opens; {_size(summary.bytes)} take long to read whole"
        return ok("spool", f"{text}: `sightline spool verify` does it")
    if not faults:
        verdict = inspect.verify(file)
        faults += verdict.faults
        faults += [f"sequences {first} to {last} are gone" for first, last in verdict.damaged]
    if faults:
        place = summary.path if file.name == FILE_NAME else str(file)
        return failed(
            "spool",
            f"{place} is damaged: {'; '.join(faults)}",
            f"Start the node, which salvages it, or run `sightline spool repair {place}`.",
        )
    user = f", in use by process {summary.in_use_by}" if summary.in_use_by else ""
    return ok("spool", f"{summary.path} is sound{user}")


def _backlog(summary: SpoolSummary, settings: EdgeSettings) -> Finding:
    check, age = "spool backlog", summary.oldest_age_seconds or 0.0
    backlog = f"{summary.pending:,} predictions wait in {_size(summary.bytes)}"
    if summary.pending and age > _OLD_SECONDS:
        return warning(
            check,
            f"{backlog}, the oldest for {age / 3600:.1f} h",
            "Start the node. If it runs, see the findings on the ingest service.",
        )
    if summary.bytes > _NEARLY_FULL * settings.spool_bytes:
        return warning(
            check,
            f"{backlog}: nearly the {_size(settings.spool_bytes)} at which the oldest are dropped",
            "Raise spool_bytes, or let the node reach the ingest service.",
        )
    return ok(check, backlog)


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest parent that exists."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if _is_there(path)), folder)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder on the way that this user may not look into
        return False


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
