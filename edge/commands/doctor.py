"""The command `doctor`: runs every check and prints what to do about each finding."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from edge.commands.options import (
    SHORT_FLAGS,
    DetectorName,
    DeviceModel,
    InferenceTarget,
    IngestTarget,
    Json,
    ModeName,
    settings_with,
)
from edge.decide.labels import labels_of
from edge.doctor import disk, model, services
from edge.doctor.bundle import Member, Subject, members, write
from edge.doctor.finding import Finding, Level, failed, ok
from edge.doctor.log_tail import LogFileError, tail
from edge.doctor.machine import machine
from edge.doctor.names import check_names
from edge.doctor.packages import packages
from edge.settings import EdgeSettings
from servicekit.addresses import public_address
from servicekit.help import CONNECTION, OUTPUT, with_settings
from servicekit.redaction import Redactor, known_secrets
from servicekit.settings import Settings, SettingsError, load
from servicekit.terminal import CommandError, UsageError

Timeout = Annotated[
    float,
    typer.Option(
        help="Seconds to wait for each answer.",
        min=0.1,
        max=600,
        rich_help_panel=CONNECTION,
    ),
]
BundleFile = Annotated[
    Path | None,
    typer.Option(
        help="Also write a support bundle, FILE.tar.gz, without secrets; must not exist.",
        metavar="FILE",
        rich_help_panel=OUTPUT,
    ),
]
LogFiles = Annotated[
    list[Path] | None,
    typer.Option(
        help="Log file whose last MiB goes into the bundle; may be given more than once.",
        metavar="FILE",
        rich_help_panel=OUTPUT,
    ),
]
MetricsPorts = Annotated[
    list[str] | None,
    typer.Option(
        help="Metrics port that goes into the bundle, host:port, beside those of the settings.",
        metavar="ADDRESS",
        rich_help_panel=OUTPUT,
    ),
]
Check = Callable[[EdgeSettings], Iterable[Finding]]
_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "bold red"}


def doctor_with(services: Callable[[], Sequence[type[Settings]]]) -> Callable[..., None]:
    """Return the command.

    Args:
        services: returns the settings classes of the services, for a bundle; called only for one.
    """

    @with_settings(EdgeSettings, without=("detector", "mode", "device_id"), hidden=SHORT_FLAGS)
    def doctor(
        *,
        advanced: Mapping[str, str],
        model: DeviceModel = None,
        detector: DetectorName = None,
        mode: ModeName = None,
        device_id: Annotated[str | None, typer.Option(help="This device's name.")] = None,
        ingest: IngestTarget = None,
        inference: InferenceTarget = None,
        timeout: Timeout = 5.0,
        bundle: BundleFile = None,
        log: LogFiles = None,
        metrics: MetricsPorts = None,
        as_json: Json = False,
    ) -> None:
        """Check this device, its services and their settings.

        Example: sightline doctor --ingest ingest.example:50051

        The options are those of `sightline log`: give the same, to check the same device. Each
        finding says what to do about it. Nothing is changed. Exit code 1: a check failed.

        With `--bundle` the findings go into an archive as well, with what else somebody needs who
        is to help: settings, versions, the machine, disks, health, metrics, the state of the spool
        and the ends of log files. Secrets are left out. The archive is written whatever the
        findings are.
        """
        named = {
            "device_model": model,
            "detector": detector,
            "mode": mode,
            "device_id": device_id,
            "ingest_target": ingest,
            "inference_target": inference,
        }
        options: dict[str, str | Path | None] = {**advanced}
        options.update((name, value) for name, value in named.items() if value is not None)
        wanted = _wanted(bundle, log or [], metrics or [])
        found = _report(findings(timeout, **options), as_json=as_json)
        files = []
        if wanted:
            settings = _all_settings(services(), options)
            files = _write(wanted, settings, found, timeout, str(options.get("api_key") or ""))
        _end(found, wanted, files, as_json=as_json)

    return doctor


doctor = doctor_with(lambda: ())
"""The command of a device without the settings of services."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The bundle that was asked for."""

    file: Path
    logs: Mapping[Path, str]
    ports: Sequence[str]


def _wanted(file: Path | None, logs: Sequence[Path], ports: Sequence[str]) -> _Wanted | None:
    """Return what is to be bundled; None: nothing. Checked before any other check takes time."""
    if file is None:
        if logs or ports:
            flag = "--log" if logs else "--metrics"
            raise UsageError(f"{flag}: is for a bundle: give --bundle FILE.tar.gz as well")
        return None
    if file.exists():
        raise CommandError(f"--bundle: {file} exists already: name another file")
    if not file.parent.is_dir():
        raise CommandError(f"--bundle: there is no folder {file.parent}: create it first")
    for port in ports:
        if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]@]+):\d{1,5}", port):
            raise UsageError(f"--metrics: must be host:port (got {public_address(port)!r})")
    try:
        return _Wanted(file, {path: tail(path) for path in logs}, ports)
    except LogFileError as error:
        raise CommandError(f"--log: {error}") from error


def _report(found: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    """Return the findings; for people, print each as it comes."""
    collected, console = [], _console()
    for finding in found:
        collected.append(finding)
        if not as_json:
            _print(console, finding)
    return collected


def _end(
    found: Sequence[Finding], wanted: _Wanted | None, files: Sequence[Member], *, as_json: bool
) -> None:
    counts = Counter(finding.level for finding in found)
    if as_json:
        line: dict[str, object] = {str(level): counts[level] for level in Level}
        line["findings"] = [asdict(finding) for finding in found]
        if wanted:
            line["bundle"] = {"file": str(wanted.file), "members": [file.name for file in files]}
        typer.echo(json.dumps(line))
    else:
        console = _console()
        console.print(", ".join(f"{counts[level]} {level}" for level in Level))
        if wanted:
            console.print(f"\nWrote {wanted.file} without secrets. Read it before you send it:")
            for file in files:
                console.print(f"  {file.name:24} {len(file.text):>9,} characters: {file.about}")
    if counts[Level.FAILED]:
        raise typer.Exit(1)


def _all_settings(
    services: Sequence[type[Settings]], options: Mapping[str, str | Path | None]
) -> dict[str, Settings | str]:
    """Return the settings of each part, or why they cannot be used."""
    loaders: dict[str, Callable[[], Settings]] = {"edge": lambda: settings_with(**options)}
    for cls in services:
        loaders[cls.part] = partial(load, cls, None, prog="sightline")
    found: dict[str, Settings | str] = {}
    for part, load_settings in loaders.items():
        try:
            found[part] = load_settings()
        except SettingsError as error:
            found[part] = str(error)
    return found


def _write(
    wanted: _Wanted,
    settings: Mapping[str, Settings | str],
    found: Sequence[Finding],
    timeout: float,
    key: str,
) -> list[Member]:
    """Write the bundle and return its files."""
    subject = Subject(settings, found, wanted.logs, wanted.ports, timeout)
    files = members(subject, Redactor([key, *known_secrets(subject.parts)]))
    try:
        write(wanted.file, files)
    except FileExistsError as error:
        raise CommandError(f"--bundle: {wanted.file} exists already: name another file") from error
    except OSError as error:
        raise CommandError(f"--bundle: {wanted.file} cannot be written: {error}") from error
    return files


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def findings(timeout: float, **options: str | Path | None) -> Iterator[Finding]:
    """Yield the findings of every check.

    Args:
        timeout: seconds for each request to a service.
        options: settings by name, over everything else; None: not given.
    """
    try:
        settings = settings_with(**options)
    except SettingsError as error:
        yield failed("settings", str(error), "Correct it: the other checks need the settings.")
        # That the other names are known would read as if none were at fault.
        yield from (one for one in check_names(os.environ) if one.level is not Level.OK)
        return
    yield ok("settings", f"device {settings.device_id}, mode {settings.mode}")
    yield from check_names(os.environ)
    yield from packages()
    yield machine()
    known: list[frozenset[str]] = []  # labels of the device's model, once it is loaded
    checks: list[Check] = [
        disk.spool,
        lambda settings: [disk.disk(settings)],
        lambda settings: model.model(settings, lambda it: known.append(labels_of(it))),
        partial(services.ingest, timeout=timeout),
        lambda settings: services.inference(settings, timeout, *known),
    ]
    for check in checks:
        try:
            yield from check(settings)
        except (SettingsError, ValueError) as error:  # TLS and key files are read when dialled
            yield failed("settings", str(error), "Correct the setting or the file.")


def _print(console: Console, finding: Finding) -> None:
    level = Text(f"{finding.level:8}", _STYLES[finding.level])
    console.print(level + Text(f"{finding.check:21} {finding.message}", ""))
    if finding.action:
        console.print(Text(f"{'':8}{'':21} -> {finding.action}"))
