"""Video files as a source, read through OpenCV."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from edge.sources.capture import Capture
from edge.sources.frame import Frame, SourceMonitor
from edge.sources.sampling import Sampler, Sampling
from servicekit.errors import invalid

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv"}


class VideoFile:
    """The frames of a video, read as fast as they are processed. No frame is dropped.

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
            raise invalid("source", f"must be a video file (got {str(path)!r})")
        self.name = str(path)
        self.length: int | None = None
        self._path = Path(path)
        self._sampling = sampling or Sampling()

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        """Yield the frames; their ids are the file's name and a number from `#000000`.

        Raises:
            OSError: OpenCV cannot read the file.
        """
        sampler = Sampler(self._sampling)
        with closing(Capture(self.name)) as capture:
            self.length = capture.length
            monitor.found()
            index = -1
            while not monitor.wait(0) and capture.grab():
                index += 1
                if sampler.takes(capture.seconds):
                    yield Frame(capture.pixels(), f"{self._path.name}#{index:06d}")
                else:
                    monitor.skipped()
        if index < 0 and not monitor.wait(0):
            raise OSError(f"{self.name} has no frame that OpenCV can read")
