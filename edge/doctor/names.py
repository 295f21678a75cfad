"""Environment variables that look like settings and are none. Pure."""

import difflib
import re
from collections.abc import Iterable

from edge.doctor.finding import Finding, ok, warning
from edge.settings import EdgeSettings

_PREFIX = "SIGHTLINE_"
_OTHERS = {"SIGHTLINE_CONFIG", "SIGHTLINE_SECRETS_DIR", "SIGHTLINE_API_KEYS_FILE"}
# The services' settings, and what tests and installations are told, are others' to know.
_FOREIGN = ("SIGHTLINE_INGEST_", "SIGHTLINE_INFERENCE_", "SIGHTLINE_TEST_", "SIGHTLINE_REQUIRE_")
# Kubernetes puts such a set into every pod beside a service that is called sightline-something.
_OF_KUBERNETES = re.compile(
    r"SIGHTLINE_\w*?(SERVICE_HOST|SERVICE_PORT\w*|PORT(_\d+_(TCP|UDP)\w*)?)"
)


def check_names(environment: Iterable[str]) -> list[Finding]:
    """Return what is wrong with the names of environment variables.

    Args:
        environment: their names.
    """
    known = {f"SIGHTLINE_EDGE_{field.upper()}" for field in EdgeSettings.model_fields} | _OTHERS
    wrong = [
        name
        for name in sorted(environment)
        if name.upper().startswith(_PREFIX)
        and name.upper() not in known  # case does not matter to pydantic-settings
        and not _is_foreign(name.upper())
    ]
    if not wrong:
        return [ok("settings names", "every SIGHTLINE_ variable that concerns a node is known")]
    return [_unknown(name, known) for name in wrong]


def _is_foreign(name: str) -> bool:
    return name.startswith(_FOREIGN) or _OF_KUBERNETES.fullmatch(name) is not None


def _unknown(name: str, known: Iterable[str]) -> Finding:
    near = difflib.get_close_matches(name.upper(), known, n=2, cutoff=0.8)
    action = (
        f"Did you mean {' or '.join(near)}?"
        if near
        else "Remove it, or see `python -m edge --help`."
    )
    return warning("settings names", f"{name} is set and no setting", action)
