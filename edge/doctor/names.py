"""Environment variables that look like settings of a node and are none. Pure.

A node refuses an unknown `SIGHTLINE_EDGE_*` itself (`servicekit.settings`). This finds names that
no program reads, such as `SIGHTLINE_EGDE_API_KEY`.
"""

from collections.abc import Mapping

from edge.doctor.finding import Finding, ok, warning
from edge.settings import EdgeSettings
from servicekit.settings import PARTS, did_you_mean
from servicekit.variables import names_of_kubernetes

_PREFIX = "SIGHTLINE_"
_OTHERS = {"SIGHTLINE_CONFIG", "SIGHTLINE_SECRETS_DIR", "SIGHTLINE_API_KEYS_FILE"}
# Each program checks the variables of its own part when it reads its settings; tests and
# installations read the others.
_CHECKED_ELSEWHERE = (
    *(f"SIGHTLINE_{part.upper()}_" for part in PARTS),
    "SIGHTLINE_TEST_",
    "SIGHTLINE_REQUIRE_",
)


def check_names(environment: Mapping[str, str]) -> list[Finding]:
    """Return a finding for each name of an environment variable that nothing reads.

    Args:
        environment: variables by name.
    """
    injected = names_of_kubernetes(environment)
    unknown = [
        name
        for name in sorted(environment)
        if name.upper().startswith(_PREFIX)
        and name.upper() not in _OTHERS  # case does not matter to pydantic-settings
        and not name.upper().startswith(_CHECKED_ELSEWHERE)
        and name not in injected
    ]
    if not unknown:
        return [ok("settings names", "every SIGHTLINE_ variable that concerns a node is known")]
    return [_unknown(name) for name in unknown]


def _unknown(name: str) -> Finding:
    known = {f"SIGHTLINE_EDGE_{field.upper()}" for field in EdgeSettings.model_fields} | _OTHERS
    near = did_you_mean(name.upper(), known, limit=2)
    action = f"Rename it{near}" if near else "Remove it, or see `sightline log --help`."
    return warning("settings names", f"{name} is set, and nothing reads it", action)
