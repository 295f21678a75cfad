"""OpenCV's VideoCapture, with errors instead of flags, and RGB instead of BGR."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Capture:
    """One open video or camera; used from one thread. A context manager.

    Args:
        place: a file, a URL, or the number of a local camera.
        timeout: seconds after which FFmpeg gives up connecting, and waiting for a frame; None: its
            own. Local cameras know none.

    Raises:
        OSError: it cannot be opened. The message does not repeat the place: a URL may have a
            password in it.
    """

    def __init__(self, place: str | int, timeout: float | None = None) -> None:
        import cv2

        options = []
        if timeout is not None:
            milliseconds = max(int(timeout * 1e3), 1)
            options += [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds]
            options += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        self._cv2: Any = cv2
        backend = cv2.CAP_FFMPEG if options else cv2.CAP_ANY
        self._capture = cv2.VideoCapture(place, backend, options)
        if not self._capture.isOpened():
            raise OSError("OpenCV cannot open it")

    def grab(self) -> bool:
        """Move on to the next frame; False: there is none, or none came in time."""
        return bool(self._capture.grab())

    @property
    def seconds(self) -> float:
        """Time of the frame within the video."""
        return float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1e3

    def pixels(self) -> "NDArray[np.uint8]":
        """Return the frame that was grabbed, RGB uint8 `[H, W, 3]`.

        Raises:
            OSError: it cannot be decoded.
        """
        there, frame = self._capture.retrieve()
        if not there or frame is None:
            raise OSError("a frame cannot be decoded")
        rgb: NDArray[np.uint8] = self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)
        return rgb

    def close(self) -> None:
        """Release the video or camera."""
        self._capture.release()
