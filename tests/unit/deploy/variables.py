"""Which settings the environment variables of a container, a manifest or a unit name."""

from collections.abc import Iterable, Mapping

from console_service.settings import ConsoleSettings
from edge.settings import EdgeSettings
from inference_service.settings import InferenceSettings
from ingest_service.settings import IngestSettings
from servicekit.settings import SHARED, Settings

CLASSES: tuple[type[Settings], ...] = (
    *(ConsoleSettings, EdgeSettings),
    *(InferenceSettings, IngestSettings),
)


def unknown(names: Iterable[str]) -> list[str]:
    """Return those variables of Sightline that no process reads."""
    known = set(SHARED)
    for cls in CLASSES:
        known |= {f"SIGHTLINE_{cls.part.upper()}_{field.upper()}" for field in cls.model_fields}
    return [name for name in names if name.startswith("SIGHTLINE_") and name not in known]


def loaded(variables: Mapping[str, str], part: str) -> Settings:
    """Return the settings of a part with the values of its variables.

    Raises:
        ValidationError: a value that the process would refuse.
    """
    (cls,) = [cls for cls in CLASSES if cls.part == part]
    prefix = f"SIGHTLINE_{part.upper()}_"
    values = {
        name.removeprefix(prefix).lower(): value
        for name, value in variables.items()
        if name.startswith(prefix)
    }
    return cls(**values)
