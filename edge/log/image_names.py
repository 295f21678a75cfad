"""Names of images that ultralytics' results come from: each identifies one image."""

import os
import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edge.names import image_id_of
from servicekit.addresses import url_scheme

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
    text = str(path or "")
    if text.startswith("/") and text.endswith(_PICTURES):  # most; the rest costs microseconds
        return image_id_of(text.rpartition("/")[2])
    name = source_name(text)
    if not name or _SEVERAL.fullmatch(text) or url_scheme(text):
        return with_time(name)
    return image_id_of(name)


def source_name(path: str) -> str:
    """Return the name of a file; of a URL only its scheme, because it may contain credentials."""
    scheme = url_scheme(path)  # ultralytics writes `_` for `:` and `/`: no secret can be cut out
    return f"{scheme} stream" if scheme else Path(path).name


def with_time(name: str) -> str:
    """Return a name followed by the UTC time, which is later in each call of this process."""
    return image_id_of(f"{name or 'image'}@{_clock.next():%Y-%m-%dT%H:%M:%S.%fZ}")


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
