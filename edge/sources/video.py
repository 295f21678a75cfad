"""Video files as a source, read through OpenCV."""

import glob
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from edge.names import source_name_of
from edge.sources.capture import Capture
from edge.sources.container import missing_bytes
from edge.sources.frame import Frame, SourceMonitor
from edge.sources.sampling import Sampler, Sampling
from servicekit.addresses import public_address
from servicekit.errors import invalid
from servicekit.names import readable

_MIN_TRIES, _MAX_TRIES = 250, 10_000  # a failure costs up to 40 us, also at the end of the file
_INEXACT = 0.01  # share of the frames by which an intact file's list may be wrong


class VideoFile:
    """The frames of a video, read as fast as they are processed. No frame is dropped.

    Damaged frames are counted and passed over; their numbers are left out. The reading ends where
    none of the rest of the frames, at least 250 and at most 10 000 in a row, can be read.

    Args:
        path: the file.
        sampling: selection of the frames, by the time within the video; None: all.

    Raises:
        SightlineError: INVALID_ARGUMENT: the file does not exist.
        ModuleNotFoundError: OpenCV is not installed (extra `video`).

    Example:
        >>> from sightline import EdgeNode, EdgeSettings, Sampling, VideoFile
        >>> settings = EdgeSettings(
        ...     mode="device",
        ...     device_model="model.onnx",
        ...     spool_dir="spool",
        ...     ingest_target="127.0.0.1:1",  # no service listens there
        ... )
        >>> with EdgeNode.from_settings(settings) as node:
        ...     video = VideoFile("gate.mp4", Sampling(every=5))
        ...     [outcome.frame.image_id for outcome in node.run(video, workers=1)]
        ['gate.mp4#000000', 'gate.mp4#000005']
    """

    live = False

    def __init__(self, path: Path | str, sampling: Sampling | None = None) -> None:
        import cv2  # noqa: F401 - a missing package must raise here, not in the reader's thread

        if not Path(path).is_file():
            shown = readable(public_address(str(path)))
            rule = "must be a video file"
            if glob.has_magic(str(path)):
                rule += ": a pattern stands for images, so name each video"
            raise invalid("source", f"{rule} (got {shown!r})")
        self.name = source_name_of(path)
        self.length: int | None = None
        self._path = Path(path)
        self._sampling = sampling or Sampling()

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        """Yield the frames; their ids are the file's name and a number from `#000000`.

        Raises:
            OSError: OpenCV cannot read the file, or the file is cut off. Its frames up to there
                are yielded before.
        """
        sampler = Sampler(self._sampling)
        number = 0  # of frames so far, damaged ones included
        with closing(self._open()) as capture:
            self.length = capture.length
            monitor.found()
            while not monitor.wait(0):
                damaged = capture.advance(self._tries(number), lambda: monitor.wait(0))
                if damaged is None:
                    break
                if damaged:
                    monitor.damaged(damaged)
                number += damaged + 1
                if not sampler.takes(capture.seconds):
                    monitor.skipped()
                    continue
                try:
                    pixels = capture.pixels()
                except OSError:
                    monitor.damaged(1)
                else:
                    yield Frame(pixels, f"{self._path.name}#{number - 1:06d}")
        if not monitor.wait(0):
            self._check_end(number, monitor)

    def _open(self) -> Capture:
        try:
            return Capture(str(self._path))
        except OSError:
            self._check_whole()
            raise

    def _tries(self, number: int) -> int:
        """Return after how many failures in a row there is no frame any more."""
        left = (self.length or 0) - number
        return min(max(left, _MIN_TRIES), _MAX_TRIES)

    def _check_end(self, number: int, monitor: SourceMonitor) -> None:
        """Compare a file that ended after a number of frames with what its container says."""
        self._check_whole()
        if not number:
            raise OSError(f"{self.name} has no frame that OpenCV can read")
        missing = (self.length or 0) - number
        if missing > max(_INEXACT * (self.length or 0), 1):
            monitor.missing(missing)

    def _check_whole(self) -> None:
        """Raise OSError if the file is empty or cut off."""
        if not self._path.stat().st_size:
            raise OSError("the file is empty")
        if missing := missing_bytes(self._path):
            raise OSError(f"the file is cut off: its last {missing:,} bytes are missing")
