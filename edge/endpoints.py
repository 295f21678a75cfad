"""The endpoints of the two services in a node's settings."""

from edge.channel import Endpoint
from edge.settings import EdgeSettings
from servicekit.errors import SightlineError
from servicekit.settings import SettingsError
from servicekit.tls import channel_credentials


def ingest_endpoint(settings: EdgeSettings) -> Endpoint:
    """Return the endpoint of the ingest service in the settings.

    Raises:
        servicekit.settings.SettingsError: a file in the settings cannot be used.
        ValueError: the API key would leave this machine in plain text, or is malformed.
    """
    return _endpoint(settings.ingest_target, settings)


def inference_endpoint(settings: EdgeSettings) -> Endpoint:
    """Return the endpoint of the inference service in the settings; see `ingest_endpoint`."""
    return _endpoint(settings.inference_target, settings)


def _endpoint(target: str, settings: EdgeSettings) -> Endpoint:
    key = settings.api_key.get_secret_value() if settings.api_key else None
    endpoint = Endpoint(target, channel_credentials(settings), key, settings.api_key_file)
    try:
        _ = endpoint.metadata
    except SightlineError as error:
        raise SettingsError(error.message) from error
    return endpoint
