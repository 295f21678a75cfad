"""A wrapper of OpenCV's VideoCapture that raises errors and returns RGB."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from servicekit.names import readable
from servicekit.routes import spare_proxies

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Capture:
    """An open video or camera. Not thread-safe.

    Args:
        place: a file, a URL, or the number of a local camera.
        timeout: seconds after which FFmpeg stops connecting, and waiting for a frame; None:
            FFmpeg's default. Local cameras have no timeout.

    Raises:
        OSError: it cannot be opened. The message does not repeat the place: a URL may contain a
            password.
    """

    def __init__(self, place: str | int, timeout: float | None = None) -> None:
        import cv2

        if isinstance(place, str):
            spare_proxies(place)
        options = []
        if timeout is not None:
            milliseconds = max(int(timeout * 1e3), 1)
            options += [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds]
            options += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        self._cv2: Any = cv2
        backend = cv2.CAP_FFMPEG if options else cv2.CAP_ANY
        with _with_text_path(place) as valid:
            self._capture = cv2.VideoCapture(valid, backend, options)
        if not self._capture.isOpened():
            raise OSError("OpenCV cannot open it")

    def advance(self, tries: int, stops: Callable[[], bool] = lambda: False) -> int | None:
        """Advance to the next frame that can be read.

        OpenCV reports a damaged frame and the end of the stream by the same False, so the reading
        goes on after it.

        Args:
            tries: number of failures in a row after which there is no frame any more, >= 1.
            stops: called after each failure; True ends the tries.

        Returns:
            The number of damaged frames before that frame. None: there is no frame any more.
        """
        for damaged in range(tries):
            if self._capture.grab():
                return damaged
            if stops():
                break
        return None

    @property
    def seconds(self) -> float:
        """The time of the frame since the start of the video, s."""
        return float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1e3

    @property
    def length(self) -> int | None:
        """Number of frames, as the video's container says; None: it does not say."""
        frames = float(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        return int(frames) if frames >= 1 else None

    def pixels(self) -> "NDArray[np.uint8]":
        """Return the current frame, RGB uint8 `[H, W, 3]`.

        Raises:
            OSError: it cannot be decoded.
        """
        decoded, frame = self._capture.retrieve()
        if not decoded or frame is None:
            raise OSError("a frame cannot be decoded")
        rgb: NDArray[np.uint8] = self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)
        return rgb

    def close(self) -> None:
        """Release the video or camera."""
        self._capture.release()


@contextmanager
def _with_text_path(place: str | int) -> Iterator[str | int]:
    """Yield a place for OpenCV, which ends the process with SIGSEGV for a name that is no text."""
    if isinstance(place, int) or readable(place) == place:
        yield place
        return
    with TemporaryDirectory(prefix="sightline-") as folder:
        link = Path(folder, "video" + readable(Path(place).suffix))
        link.symlink_to(Path(place).absolute())
        yield str(link)
