"""One request to a metrics port over HTTP, past every proxy."""

import urllib.error
import urllib.request
from collections.abc import Iterable

from servicekit.addresses import hosts_of
from servicekit.settings import Settings

_LARGEST = 16 << 20
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared, not bound


def ports(parts: Iterable[Settings]) -> dict[str, str]:
    """Return the metrics address of each part that has one, host:port by part.

    A port of 0 is left out: only the part itself knows which one it has got.
    """
    found = {}
    for settings in parts:
        address = str(getattr(settings, "metrics_listen", ""))
        port = address.rpartition(":")[2]
        if address and port != "0":
            host = hosts_of(address)[0]
            found[settings.part] = f"{_EVERY_ADDRESS.get(host, address.rpartition(':')[0])}:{port}"
    return found


def get(address: str, path: str, timeout: float) -> str:
    """Return the body of an answer, cut after 16 MiB, whatever its status is.

    Args:
        address: host:port.
        path: such as `/metrics`.
        timeout: seconds to wait for the connection and for each part of the answer.

    Raises:
        OSError: there is no answer.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}{path}", timeout=timeout) as answer:
            return str(answer.read(_LARGEST).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        with error:
            return f"HTTP {error.code}\n{error.read(_LARGEST).decode(errors='replace')}"
