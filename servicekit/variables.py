"""Environment variables that Kubernetes injects, told apart from settings with a typing mistake.

Kubernetes puts a set of variables into every pod for each service of the namespace. Those of a
service called `sightline-ingest` begin like the settings of the ingest service:
`SIGHTLINE_INGEST_SERVICE_HOST`, `SIGHTLINE_INGEST_PORT`, `SIGHTLINE_INGEST_PORT_50051_TCP_ADDR`.
"""

import re
from collections.abc import Mapping

_INJECTED = re.compile(
    r"SIGHTLINE_\w*?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
# The one name that a person may have meant as a setting: Kubernetes gives it a URL.
_URL = re.compile(r"(tcp|udp|sctp)://.+")


def names_of_kubernetes(environment: Mapping[str, str]) -> set[str]:
    """Return the names of the variables that Kubernetes injected.

    Args:
        environment: variables by name. `..._PORT` counts only with a value such as
            `tcp://10.0.0.1:50051`.
    """
    return {
        name
        for name, value in environment.items()
        if _INJECTED.fullmatch(name)
        and (not re.fullmatch(r"SIGHTLINE_\w*?PORT", name) or _is_injected_port(name, value))
    }


def _is_injected_port(name: str, value: str) -> bool:
    return name.endswith("SERVICE_PORT") or _URL.fullmatch(value) is not None
