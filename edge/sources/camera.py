"""Cameras, local or over the network, which are read through OpenCV and reconnected when lost."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime

from edge.backoff import full_jitter
from edge.sources.capture import Capture
from edge.sources.frame import Frame, SourceMonitor
from edge.sources.sampling import Sampler, Sampling

_SECRET = re.compile(r"(user|login|pass\w*?|pwd|token|key|auth)=[^_&/;?]*", re.IGNORECASE)
_STREAM_KEYS = {"channel", "ch", "subtype", "camera", "stream", "id", "profile"}
"""Keys of a URL's query that distinguish the streams of one recorder and hold no secret."""


class Camera:
    """A camera that is read until it is no longer needed, and reconnected when it is lost.

    Reconnections use exponential back-off with full jitter (`edge.backoff`) up to 30 s; a frame
    resets it.

    Args:
        place: a URL (`rtsp://`, `http://` with MJPEG, ...), a device such as `/dev/video0`, or the
            number of a local camera.
        name: name in statistics, labels and image names; None: the place without credentials and
            without the parts of its query that do not identify the stream.
        sampling: selection of the frames to process; None: all.
        timeout: seconds to wait for a connection, and for a frame, before reconnecting, > 0 and at
            most 3600. It applies to network cameras only: drivers of local cameras have their own.
        backoff: returns the seconds to wait before reconnection 1, 2, ... in a row; None: full
            jitter.

    Raises:
        ValueError: `timeout` is out of range.
        ModuleNotFoundError: OpenCV is not installed (extra `video`).

    Example:
        >>> from sightline import Camera, Sampling
        >>> camera = Camera("rtsp://user:pw@10.0.0.7/live?channel=2", sampling=Sampling(every=5))
        >>> camera.name  # the password stays out of statistics and logs
        'rtsp://10.0.0.7/live?channel=2'
    """

    live = True

    def __init__(
        self,
        place: str | int,
        name: str | None = None,
        sampling: Sampling | None = None,
        *,
        timeout: float = 10.0,
        backoff: Callable[[int], float] | None = None,
    ) -> None:
        import cv2  # noqa: F401 - a missing package must raise here, not in the reader's thread

        if not 0 < timeout <= 3600:
            raise ValueError(f"timeout must be above 0 and at most 3600 s, got {timeout:g}")
        self._place = int(place) if str(place).isdigit() else place
        self.name = name or _public_name(place)
        self._sampling = sampling or Sampling()
        self._timeout = timeout if "://" in str(place) else None
        self._backoff = backoff or full_jitter(first=0.5, maximum=30.0)
        self._failures = 0

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        """Yield frames until the monitor stops the reading; ids are the name and the UTC time."""
        sampler = Sampler(self._sampling)
        while not monitor.wait(0):
            error = "the camera stopped sending frames"
            try:
                with closing(Capture(self._place, self._timeout)) as capture:
                    yield from self._read(capture, sampler, monitor)
            except OSError as raised:
                error = str(raised)
            if not monitor.wait(0):
                monitor.lost(error)
                self._failures += 1
                monitor.wait(self._backoff(self._failures))

    def _read(self, capture: Capture, sampler: Sampler, monitor: SourceMonitor) -> Iterator[Frame]:
        connected = False
        while not monitor.wait(0) and capture.grab():
            now = time.time()
            if not connected:
                connected = True
                self._failures = 0
                monitor.found()
            if sampler.takes(time.monotonic()):
                yield Frame(capture.pixels(), f"{self.name}@{_utc(now)}", now)
            else:
                monitor.skipped()


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _public_name(place: str | int) -> str:
    """Return the place without secrets that must not be logged: a user, a password, a token.

    It does not parse the place as a URL: passwords of cameras hold characters that URLs forbid.
    """
    scheme, separator, rest = str(place).partition("://")
    if not separator:
        return f"camera-{place}" if str(place).isdigit() else str(place)
    path, _, query = rest.rpartition("@")[2].partition("#")[0].partition("?")
    kept = [item for item in query.split("&") if item.partition("=")[0].lower() in _STREAM_KEYS]
    shown = _SECRET.sub(r"\1=***", path)
    return f"{scheme}://{shown}" + ("?" + "&".join(kept) if kept else "")
