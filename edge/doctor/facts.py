"""Facts for a support bundle: settings, packages, the machine, disks, services and spools.

Each function returns a value of JSON. What it says may hold secrets, but for the settings: the
bundle passes everything through a `Redactor`.
"""

import os
import platform
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import JsonValue, SecretStr

from edge.channel import Endpoint
from edge.doctor import health
from edge.endpoints import inference_endpoint, ingest_endpoint
from edge.settings import EdgeSettings
from edge.spool import inspect
from edge.spool.directories import default_spool_dir
from servicekit import resources
from servicekit.distribution import version
from servicekit.errors import SightlineError
from servicekit.redaction import MASK, is_key_file
from servicekit.settings import Settings, SettingsError

_VARIABLES = ("SIGHTLINE_", "OTEL_", "GRPC_", "OPENCV_FFMPEG_", "CUDA_", "ORT_", "OMP_")
_MEMORY = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")


def effective(settings: Settings) -> JsonValue:
    """Return the settings of one part: those that were given, and the defaults of the others.

    A secret is `***`. Of a file of keys its size and mode are said instead of its path, and of
    labels, the setting `context`, only the keys.
    """
    shown = {name: _shown(name, value) for name, value in settings}
    given = settings.model_fields_set
    return {
        "given": {name: value for name, value in shown.items() if name in given},
        "defaults": {name: value for name, value in shown.items() if name not in given},
    }


def variables(environment: Mapping[str, str] = os.environ) -> JsonValue:
    """Return the names of the variables that change what Sightline does, without their values."""
    names = (
        name
        for name in environment
        if name.upper().startswith(_VARIABLES) or name.lower().endswith("_proxy")
    )
    return list[JsonValue](sorted(names))


def versions() -> JsonValue:
    """Return the versions of Sightline, of Python and of all packages that are installed."""
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {
        "sightline": version(),
        "python": platform.python_version(),
        "packages": dict[str, JsonValue](sorted(found.items(), key=lambda it: it[0].lower())),
    }


def machine_facts() -> JsonValue:
    """Return the operating system, the time, and the CPUs and memory that this process may use."""
    system: dict[str, JsonValue] = {"platform": platform.platform()}
    with suppress(OSError):
        system["distribution"] = platform.freedesktop_os_release().get("PRETTY_NAME")
    system["libc"] = " ".join(platform.libc_ver())
    now = datetime.now(UTC)
    return {
        "system": system,
        "time": {"utc": now.isoformat(), "zone": time.strftime("%z"), "uptime_s": _uptime()},
        "cpus": {
            "usable": resources.cpus(),
            "of_the_machine": os.cpu_count(),
            "load": list[JsonValue](os.getloadavg()) if hasattr(os, "getloadavg") else None,
        },
        "memory_bytes": {
            "usable": resources.memory(),
            "limit": resources.memory_limit(),
            **_memory(),
        },
    }


def disks(parts: Iterable[Settings]) -> JsonValue:
    """Return the size of each file that the settings name, and the free space beside it."""
    places: dict[str, Path] = {"temporary files": Path(tempfile.gettempdir())}
    for settings in parts:
        for name, value in settings:
            is_place = isinstance(value, Path) or name.endswith(("_dir", "_database"))
            if is_place and value and not is_key_file(name):
                places[f"{settings.part}.{name}"] = Path(value)
        if isinstance(settings, EdgeSettings):
            places["edge.spool_dir"] = spool_folder(settings)
    return {name: _place(path) for name, path in places.items()}


def spool_folder(settings: EdgeSettings) -> Path:
    """Return the folder of the device's spool.

    Raises:
        servicekit.settings.SettingsError: it is not given, and this user has no home folder.
    """
    return settings.spool_dir or default_spool_dir(settings.device_id)


def healths(settings: EdgeSettings, timeout: float) -> JsonValue:
    """Return the answer of each service to a health check."""
    services: tuple[tuple[str, str, Callable[[EdgeSettings], Endpoint]], ...] = (
        ("ingest", health.INGEST, ingest_endpoint),
        ("inference", health.INFERENCE, inference_endpoint),
    )
    found: dict[str, JsonValue] = {}
    for name, full_name, endpoint_of in services:
        try:
            report = health.ask(endpoint_of(settings), full_name, timeout)
        except (SettingsError, SightlineError, ValueError) as error:
            found[name] = {"error": str(error)}
        else:
            found[name] = {
                "status": report.status,
                "seconds": report.seconds,
                "clock_offset_s": report.clock_offset,
                "version": report.version,
            }
    return found


def spools(folder: Path) -> JsonValue:
    """Return sizes and counts of the spools in a folder: no prediction, no image, no label."""
    return [_spool(file) for file in inspect.below(folder)]


def _spool(file: Path) -> JsonValue:
    try:
        summary = inspect.summary(file)
        found: dict[str, JsonValue] = {
            "device_id": summary.device_id,
            "spool_id": summary.spool_id,
            "pending": summary.pending,
            "oldest_age_seconds": summary.oldest_age_seconds,
            "bytes": summary.bytes,
            "in_use": summary.in_use_by is not None,
            "files_set_aside": len(summary.set_aside),
            "problem": summary.problem,
        }
        if summary.problem is None:
            details = inspect.details(file, 0)
            found |= {
                "acknowledged": details.acknowledged,
                "sent_through": details.sent_through,
                "predictions": details.predictions,
                "gaps": dict(details.gaps),
                "bytes_in_use": details.bytes_in_use,
                "bytes_taken": details.bytes_taken,
            }
    except (OSError, sqlite3.Error, SightlineError) as error:
        return {"error": str(error)}
    return found


def _shown(name: str, value: object) -> JsonValue:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Path) and is_key_file(name):
        return f"{MASK} ({_state(value)})"
    if isinstance(value, tuple):
        words = [str(word) for word in value]
        if name == "context":
            words = [f"{word.partition('=')[0]}={MASK}" for word in words]
        return list[JsonValue](words)
    return str(value)


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError as error:
        return error.strerror or type(error).__name__
    return f"{state.st_size} bytes, mode {state.st_mode & 0o777:o}"


def _place(path: Path) -> JsonValue:
    found: dict[str, JsonValue] = {"path": str(path), "exists": path.exists()}
    if path.is_file():
        found["bytes"] = path.stat().st_size
    there = next((one for one in (path, *path.absolute().parents) if one.exists()), Path("/"))
    usage = shutil.disk_usage(there)
    return {**found, "disk_bytes": usage.total, "disk_free_bytes": usage.free}


def _memory() -> dict[str, JsonValue]:
    with suppress(OSError, ValueError):
        pairs = (line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return {name: int(value.split()[0]) * 1024 for name, value in pairs if name in _MEMORY}
    return {}


def _uptime() -> float | None:
    with suppress(OSError, ValueError):
        return float(Path("/proc/uptime").read_text().split()[0])
    return None
