"""Options that several commands have, settings with flags over them, and a console for notes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edge.settings import EdgeSettings
from servicekit.help import CONNECTION, OUTPUT
from servicekit.settings import load

IngestTarget = Annotated[
    str | None, typer.Option(help="Ingest service, host:port.", rich_help_panel=CONNECTION)
]
InferenceTarget = Annotated[
    str | None, typer.Option(help="Inference service, host:port.", rich_help_panel=CONNECTION)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=OUTPUT)
]


def notes() -> Console:
    """Return a console on stderr: stdout is for data."""
    return Console(stderr=True)


def settings_with(**options: str | float | Path | None) -> EdgeSettings:
    """Return the edge settings, with the options of a command over everything else.

    Args:
        options: settings by name; None: from the environment, the TOML file or the default.

    Raises:
        SettingsError: a value cannot be used.
    """
    values = {name: value for name, value in options.items() if value is not None}
    return load(EdgeSettings, [_flag(*item) for item in values.items()], prog="sightline")


def _flag(name: str, value: str | float | Path) -> str:
    flag = name.replace("_", "-")
    if EdgeSettings.model_fields[name].annotation is bool:
        return f"--{flag}" if value == "true" else f"--no-{flag}"
    return f"--{flag}={value}"
