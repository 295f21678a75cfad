"""Environment variables that look like settings of a node and are none. Pure.

A node refuses an unknown `SIGHTLINE_EDGE_*` itself (`servicekit.settings`). This finds names that
no program reads, such as `SIGHTLINE_EGDE_API_KEY`.
"""

from collections.abc import Mapping

from edge.doctor.finding import Finding, ok, warning
from edge.settings import EdgeSettings
from servicekit.settings import SHARED, did_you_mean, unread_variables


def check_names(environment: Mapping[str, str]) -> list[Finding]:
    """Return a finding for each name of an environment variable that nothing reads.

    Args:
        environment: variables by name.
    """
    unknown = unread_variables(environment)
    if not unknown:
        return [ok("settings names", "every SIGHTLINE_ variable that concerns a node is known")]
    return [_unknown(name) for name in unknown]


def _unknown(name: str) -> Finding:
    known = {f"SIGHTLINE_EDGE_{field.upper()}" for field in EdgeSettings.model_fields} | SHARED
    near = did_you_mean(name.upper(), known, limit=2)
    action = f"Rename it{near}" if near else "Remove it, or see `sightline log --help`."
    return warning("settings names", f"{name} is set, and nothing reads it", action)
