"""Options that several commands have, settings with flags over them, and a console for notes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from servicekit.help import CONNECTION, OUTPUT

if TYPE_CHECKING:
    from edge.settings import EdgeSettings

SHORT_FLAGS = {
    "device_model": "model",
    "ingest_target": "ingest",
    "inference_target": "inference",
}
"""Flags of commands that are shorter than the names of their settings."""
IngestTarget = Annotated[
    str | None,
    typer.Option("--ingest", help="Ingest service, host:port.", rich_help_panel=CONNECTION),
]
InferenceTarget = Annotated[
    str | None,
    typer.Option("--inference", help="Inference service, host:port.", rich_help_panel=CONNECTION),
]
DeviceModel = Annotated[
    Path | None, typer.Option(help="Model file on this device. Not given: the cloud answers.")
]
DetectorName = Annotated[
    str | None, typer.Option(help="Runtime of the model: onnx or ultralytics.")
]
ModeName = Annotated[
    str | None, typer.Option(help="Who answers: auto, device, cloud, cascade or hedged.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=OUTPUT)
]


def notes() -> Console:
    """Return a console on stderr: stdout is for data."""
    return Console(stderr=True)


def flags_of(options: Mapping[str, str | Path]) -> list[str]:
    """Return the flags of `log` and `doctor` that give these settings; secrets are left out.

    Args:
        options: settings by name, as texts.
    """
    words = []
    for name, value in options.items():
        flag = SHORT_FLAGS.get(name, name.replace("_", "-"))
        if _is_switch(name):
            words.append(f"--{flag}" if value == "true" else f"--no-{flag}")
        elif name != "api_key":
            words += [f"--{flag}", str(value)]
    return words


def settings_with(**options: str | float | Path | None) -> "EdgeSettings":
    """Return the edge settings, with the options of a command over everything else.

    Args:
        options: settings by name; None: from the environment, the TOML file or the default.

    Raises:
        SettingsError: a value cannot be used.
    """
    # Most of what a command takes to start, and some commands have no settings.
    from edge.settings import EdgeSettings
    from servicekit.settings import load

    values = {name: value for name, value in options.items() if value is not None}
    return load(EdgeSettings, [_flag(*item) for item in values.items()], prog="sightline")


def _flag(name: str, value: str | float | Path) -> str:
    flag = name.replace("_", "-")
    if _is_switch(name):
        return f"--{flag}" if value == "true" else f"--no-{flag}"
    return f"--{flag}={value}"


def _is_switch(name: str) -> bool:
    from edge.settings import EdgeSettings

    return EdgeSettings.model_fields[name].annotation is bool
