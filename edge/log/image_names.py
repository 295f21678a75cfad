"""Names of images that ultralytics' results come from: each identifies one image."""

import hashlib
import os
import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edge.fields import as_text

MAX_BYTES = 512
"""Bytes of an image id at most; the server rejects a longer one."""
_URL = re.compile(r"([A-Za-z][\w+.-]*?)(?:___|://)")
"""Start of a URL. ultralytics writes `_` for `:` and `/`, so its credentials cannot be cut out."""
UNNAMED = re.compile(r"image\d+\.jpg")
"""Path that ultralytics makes up for an array or a tensor. Those of files are absolute."""
_SEVERAL = re.compile(
    r"image\d+\.jpg|\d+|screen .*|.*\.(?:asf|avi|gif|m4v|mkv|mov|mp4|mpe?g|ts|wmv|webm)",
    re.IGNORECASE,
)
"""Paths that many images have in common: arrays, a camera's number, a screen, or a video."""
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def name_of_image(path: object) -> str:
    """Return the name of an image by the path in its results.

    The name of a file stands for one image. A path that several images have in common, or none,
    is followed by the time: `clip.mp4@2026-01-31T12:00:00.000000Z`.
    """
    text = as_text(path or "")
    if text.startswith("/") and text.endswith(_PICTURES):  # most; the rest costs microseconds
        return bounded(text.rpartition("/")[2])
    name = source_name(text)
    if not name or _SEVERAL.fullmatch(text) or _URL.match(text):
        return with_time(name)
    return bounded(name)


def source_name(path: str) -> str:
    """Return the name of a file; of a URL only its scheme, because it may contain credentials."""
    url = _URL.match(path)
    return f"{url[1]} stream" if url else Path(path).name


def with_time(name: str) -> str:
    """Return a name followed by the UTC time, which is later in each call of this process."""
    time = f"@{_clock.next():%Y-%m-%dT%H:%M:%S.%fZ}"
    return bounded(name or "image", MAX_BYTES - len(time)) + time


def bounded(name: str, size: int = MAX_BYTES) -> str:
    """Return a name of at most `size` bytes: a longer one keeps its end, after a hash of it all."""
    if 4 * len(name) <= size:
        return name
    data = name.encode()
    if len(data) <= size:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{digest}~{data[17 - size :].decode(errors='ignore')}"


class _ImageClock:
    """A clock that never shows the same time twice, so that names with its time differ."""

    def __init__(self) -> None:
        self._last = datetime.min.replace(tzinfo=UTC)
        self.renew()

    def renew(self) -> None:
        self._lock = threading.Lock()

    def next(self) -> datetime:
        with self._lock:
            self._last = max(datetime.now(UTC), self._last + timedelta(microseconds=1))
            return self._last


_clock = _ImageClock()
# Another thread of the parent may hold its lock.
os.register_at_fork(after_in_child=_clock.renew)
