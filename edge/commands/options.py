"""What the commands have in common: settings with flags over them, and a console for notes."""

from pathlib import Path

from rich.console import Console

from edge.settings import EdgeSettings
from servicekit.settings import load


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
    given = {name: value for name, value in options.items() if value is not None}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return load(EdgeSettings, flags, prog="sightline")
