"""Open tabs of the console, as the page keeps them: live events, and panels that are read again."""

import http.client
import json
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

_PATIENCE_SECONDS = 60.0


def panels(device: str = "") -> dict[str, tuple[str, float]]:
    """Return the path of each panel that the overview reads, and the seconds until the next read.

    They are those of console_service/static/screens/overview.js.

    Args:
        device: the device that the page shows; empty: the whole fleet.
    """
    one = {"device_id": device} if device else {}
    day = {"start_time": _hours_ago(24), "bucket": "3600"}
    return {
        "devices": ("/devices?limit=1000", 10.0),
        "series": (_path("/series", one | day), 30.0),
        "ledger": (_path("/ledger", {**one, "limit": "12"}), 30.0),
        "frame": (_path("/frame", one), 60.0),
        "confidence": (_path("/confidence", one), 60.0),
    }


def other_panels() -> dict[str, str]:
    """Return the paths of panels that other ranges and screens read."""
    return {
        "series_1h": _path("/series", {"start_time": _hours_ago(1), "bucket": "60"}),
        "series_7d": _path("/series", {"start_time": _hours_ago(168), "bucket": "3600"}),
        "series_14d": _path("/series", {"start_time": _hours_ago(336), "bucket": "3600"}),
        "series_14d_of_a_device": _path(
            "/series", {"start_time": _hours_ago(336), "bucket": "3600", "device_id": "bench-3"}
        ),
        "models": "/models",
        "spools": "/ledger?limit=100",
        "gaps": "/gaps?limit=100",
        "rejections": "/rejections?limit=100",
    }


class Tab:
    """An open tab, until `end`.

    Args:
        address: host:port of the console.
        device: as in `panels`.
    """

    def __init__(self, address: str, device: str = "") -> None:
        self._address = address
        self._device = device
        self._before = self._stored()
        self._ending = threading.Event()
        self._rows: list[tuple[str, str, int]] = []
        self._left_out = 0
        self._live = http.client.HTTPConnection(address, timeout=_PATIENCE_SECONDS)
        self._live.request("GET", _path("/live", {"device_id": device} if device else {}))
        self._events = self._live.getresponse()
        self._events.readline()  # the stream has begun
        self._threads = [threading.Thread(target=run) for run in (self._follow, self._poll)]
        for thread in self._threads:
            thread.start()

    def end(self) -> tuple[int, int]:
        """Close the tab.

        Returns:
            The predictions that live events did not account for, and those that came twice.
        """
        expected = self._stored() - self._before
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._accounted() < expected and time.monotonic() < deadline:
            time.sleep(0.05)
        self._ending.set()
        for thread in self._threads:
            thread.join()
        doubles = len(self._rows) - len(set(self._rows))
        return max(expected - self._accounted(), 0), doubles

    def _accounted(self) -> int:
        return len(self._rows) + self._left_out

    def _follow(self) -> None:
        while not self._ending.is_set():  # a heartbeat comes at least every 10 s
            line = self._events.readline()
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                self._left_out += event.get("left_out", 0)
                self._rows += [
                    (row["device_id"], row["spool_id"], row["prediction"]["sequence"])
                    for row in event.get("predictions", ())
                ]
        self._live.close()

    def _poll(self) -> None:
        due = dict.fromkeys(panels(self._device), time.monotonic())
        while True:
            name = min(due, key=lambda name: due[name])
            if self._ending.wait(max(due[name] - time.monotonic(), 0)):
                return
            path, seconds = panels(self._device)[name]
            read(self._address, path)
            due[name] = time.monotonic() + seconds

    def _stored(self) -> int:
        stats = read(self._address, _path("/stats", {"device_id": self._device}))
        return int(stats["total_predictions"])


def read(address: str, path: str) -> dict[str, Any]:
    """Return the JSON of a path. Raises RuntimeError if it is an error."""
    connection = http.client.HTTPConnection(address, timeout=_PATIENCE_SECONDS)
    try:
        connection.request("GET", path, headers={"Sightline-Timeout": "60"})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise RuntimeError(f"{path}: {response.status} {text.decode()}")
    found: dict[str, Any] = json.loads(text)
    return found


def _hours_ago(hours: int) -> str:
    now = datetime.now(UTC)
    end = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return (end - timedelta(hours=hours)).isoformat()


def _path(path: str, values: Mapping[str, str]) -> str:
    query = urlencode({name: value for name, value in values.items() if value})
    return f"{path}?{query}" if query else path
