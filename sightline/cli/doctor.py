"""`sightline doctor`, with the settings of the services for its support bundle."""

from edge.commands.doctor import doctor_with
from servicekit.settings import Settings


def _services() -> tuple[type[Settings], ...]:
    """Return the settings classes of the services, which only a support bundle needs."""
    from console_service.settings import ConsoleSettings
    from inference_service.settings import InferenceSettings
    from ingest_service.settings import IngestSettings

    return (IngestSettings, InferenceSettings, ConsoleSettings)


doctor = doctor_with(_services)
