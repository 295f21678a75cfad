"""Cameras, local or over the network, which are read through OpenCV and reconnected when lost."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

from edge.backoff import full_jitter
from edge.sources.capture import Capture
from edge.sources.frame import Frame, SourceMonitor
from edge.sources.sampling import Sampler, Sampling
from servicekit.addresses import public_address

_TRIES = 100  # frames that fail in a row before the camera is connected anew
_LOCAL_TIMEOUT = 10.0  # of drivers; OpenCV's default


class Camera:
    """A camera that is read until it is no longer needed, and reconnected when it is lost.

    A damaged frame is counted and passed over. The camera is lost after a hundred in a row, or
    `timeout` without a frame. Reconnections use exponential back-off with full jitter
    (`edge.backoff`) up to 30 s; a frame resets it.

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
        patience = self._timeout or _LOCAL_TIMEOUT
        while not monitor.wait(0):
            gives_up = partial(_gives_up, monitor, time.monotonic() + patience)
            damaged = capture.advance(_TRIES, gives_up)
            if damaged is None:
                return
            if damaged:
                monitor.damaged(damaged)
            now, seen = time.time(), time.monotonic()
            if not connected:
                connected = True
                self._failures = 0
                monitor.found()
            if not sampler.takes(seen):
                monitor.skipped()
                continue
            try:
                pixels = capture.pixels()
            except OSError:
                monitor.damaged(1)
            else:
                yield Frame(pixels, f"{self.name}@{_utc(now)}", now)


def _gives_up(monitor: SourceMonitor, deadline: float) -> bool:
    return monitor.wait(0) or time.monotonic() >= deadline


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _public_name(place: str | int) -> str:
    """Return the place without a user, a password or a token."""
    return f"camera-{place}" if str(place).isdigit() else public_address(str(place))
