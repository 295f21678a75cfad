"""The edge settings that a command runs with: its options over everything else."""

from pathlib import Path

from edge.channel import Endpoint
from edge.settings import EdgeSettings
from servicekit.settings import SettingsError, load
from servicekit.tls import channel_credentials


def edge_settings(**options: str | float | Path | None) -> EdgeSettings:
    """Returns the settings, with the options that are given on top.

    Args:
        options: settings by name; None: from the environment, the TOML file or the default.

    Raises:
        SettingsError: a value cannot be used.
    """
    given = {name: value for name, value in options.items() if value is not None}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return load(EdgeSettings, flags, prog="sightline")


def endpoint(settings: EdgeSettings, target: str) -> Endpoint:
    """Returns a service, and how the settings say to speak to it.

    Raises:
        SettingsError: a TLS file cannot be used, or the API key would travel in plain text.
    """
    key = settings.api_key.get_secret_value() if settings.api_key else None
    try:
        return Endpoint(target, channel_credentials(settings), key)
    except ValueError as error:
        raise SettingsError(str(error)) from error
