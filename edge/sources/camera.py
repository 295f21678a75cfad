"""Cameras: local ones and streams over the network, through OpenCV; they come back when lost."""

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
_WHICH_STREAM = {"channel", "ch", "subtype", "camera", "stream", "id", "profile"}
"""Keys of a query that tell the streams of one recorder apart, and nothing else."""


class Camera:
    """A camera that is read for as long as somebody wants it, and reconnected whenever it is lost.

    Retries wait with full jitter (`edge.backoff`), up to 30 s; a frame resets them.

    Args:
        place: a URL (`rtsp://`, `http://` with MJPEG, ...), a device such as `/dev/video0`, or the
            number of a local camera.
        name: what it is called in statistics, labels and image names; None: the place without
            the credentials in it, and without what of its query says nothing of the stream.
        sampling: which frames are wanted.
        timeout: seconds to wait for a connection, and for a frame, before reconnecting, > 0.
            Over the network only: the drivers of local cameras have their own.
        backoff: seconds to wait before reconnection 1, 2, ... in a row.

    Raises:
        ValueError: `timeout` is out of its range.
        ModuleNotFoundError: OpenCV is not installed (the extra `video`).

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
        import cv2  # noqa: F401 - better missed here than in the reader's thread

        if not 0 < timeout <= 3600:
            raise ValueError(f"timeout must be above 0 and at most 3600 s, is {timeout:g}")
        self._place = int(place) if str(place).isdigit() else place
        self.name = name or _public_name(place)
        self._sampling = sampling or Sampling()
        self._timeout = timeout if "://" in str(place) else None
        self._backoff = backoff or full_jitter(first=0.5, maximum=30.0)
        self._failures = 0

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        """Yield frames until the monitor wants no more; ids are the name and the time in UTC."""
        sampler = Sampler(self._sampling)
        while not monitor.wait(0):
            error = "the camera gives no more frames"
            try:
                with closing(Capture(self._place, self._timeout)) as capture:
                    yield from self._read(capture, sampler, monitor)
            except OSError as failed:
                error = str(failed)
            if not monitor.wait(0):
                monitor.lost(error)
                self._failures += 1
                monitor.wait(self._backoff(self._failures))

    def _read(self, capture: Capture, sampler: Sampler, monitor: SourceMonitor) -> Iterator[Frame]:
        found = False
        while not monitor.wait(0) and capture.grab():
            now = time.time()
            if not found:
                found = True
                self._failures = 0
                monitor.found()
            if sampler.takes(time.monotonic()):
                yield Frame(capture.pixels(), f"{self.name}@{_utc(now)}", now)
            else:
                monitor.skipped()


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _public_name(place: str | int) -> str:
    """The place without what must not be logged: a user, a password, a token.

    Not by a URL's rules: passwords of cameras have characters that those forbid.
    """
    scheme, separator, rest = str(place).partition("://")
    if not separator:
        return f"camera-{place}" if str(place).isdigit() else str(place)
    path, _, query = rest.rpartition("@")[2].partition("#")[0].partition("?")
    kept = [one for one in query.split("&") if one.partition("=")[0].lower() in _WHICH_STREAM]
    shown = _SECRET.sub(r"\1=***", path)
    return f"{scheme}://{shown}" + ("?" + "&".join(kept) if kept else "")
