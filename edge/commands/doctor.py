"""The command `doctor`: runs every check and prints what to do about each finding."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from edge.commands.options import (
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
from edge.doctor.finding import Finding, Level, failed, ok
from edge.doctor.machine import machine
from edge.doctor.names import check_names
from edge.doctor.packages import packages
from edge.settings import EdgeSettings
from servicekit.help import CONNECTION, with_settings
from servicekit.settings import SettingsError

Check = Callable[[EdgeSettings], Iterable[Finding]]
_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "bold red"}


@with_settings(EdgeSettings, without=("detector", "mode", "device_id"))
def doctor(
    *,
    advanced: Mapping[str, str],
    model: DeviceModel = None,
    detector: DetectorName = None,
    mode: ModeName = None,
    device_id: Annotated[str | None, typer.Option(help="This device's name.")] = None,
    ingest: IngestTarget = None,
    inference: InferenceTarget = None,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds to wait for each answer.",
            min=0.1,
            max=600,
            rich_help_panel=CONNECTION,
        ),
    ] = 5.0,
    as_json: Json = False,
) -> None:
    """Check this device, its services and their settings.

    Example: sightline doctor --ingest ingest.example:50051

    The options are those of `sightline log`: give the same, to check the same device. Each finding
    says what to do about it. Nothing is changed. Exit code 1: a check failed.
    """
    counts: Counter[Level] = Counter()
    printed = []
    console = Console(highlight=False, soft_wrap=True)
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
    for finding in findings(timeout, **options):
        counts[finding.level] += 1
        if as_json:
            printed.append(asdict(finding))
        else:
            _print(console, finding)
    if as_json:
        totals = {str(level): counts[level] for level in Level}
        typer.echo(json.dumps({**totals, "findings": printed}))
    else:
        console.print(", ".join(f"{counts[level]} {level}" for level in Level))
    if counts[Level.FAILED]:
        raise typer.Exit(1)


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
