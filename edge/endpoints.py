"""The two services that the settings of a node name."""

from edge.channel import Endpoint
from edge.settings import EdgeSettings
from servicekit.errors import SightlineError
from servicekit.settings import SettingsError
from servicekit.tls import channel_credentials


def ingest_endpoint(settings: EdgeSettings) -> Endpoint:
    """Return the ingest service that the settings name.

    Raises:
        servicekit.settings.SettingsError: a file that a setting names cannot be used.
        ValueError: the API key would leave this machine in plain text, or is none.
    """
    return _endpoint(settings.ingest_target, settings)


def inference_endpoint(settings: EdgeSettings) -> Endpoint:
    """Return the inference service that the settings name; see `ingest_endpoint`."""
    return _endpoint(settings.inference_target, settings)


def _endpoint(target: str, settings: EdgeSettings) -> Endpoint:
    key = settings.api_key.get_secret_value() if settings.api_key else None
    endpoint = Endpoint(target, channel_credentials(settings), key, settings.api_key_file)
    try:
        _ = endpoint.metadata
    except SightlineError as error:
        raise SettingsError(error.message) from error
    return endpoint
