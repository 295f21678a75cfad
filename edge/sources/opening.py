"""Construction of the source that a path, URL or camera number names."""

from contextlib import closing
from pathlib import Path

from edge.sources.camera import Camera
from edge.sources.capture import Capture
from edge.sources.frame import FrameSource
from edge.sources.pictures import PictureFiles
from edge.sources.sampling import Sampling
from edge.sources.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from edge.sources.video import VideoFile
from servicekit.media_kinds import HEAD_BYTES, image_kind, is_video


def open_source(place: str | Path, sampling: Sampling | None = None) -> FrameSource:
    """Return the source that a place names, without reading frames from it.

    A file is an image or a video by its suffix, or by its content if the suffix is of neither.

    Args:
        place: a number or `/dev/video...` (a local camera), a URL with `://` (a network camera),
            the path of a video file, or an image, a folder or a pattern of images.
        sampling: selection of the frames to process; None: all.

    Raises:
        SightlineError: INVALID_ARGUMENT: the file does not exist, or there is no image.
        ModuleNotFoundError: the source needs OpenCV, which is not installed (extra `video`).
    """
    word = str(place)
    if word.isdigit() and not Path(word).exists():
        return Camera(int(word), sampling=sampling)
    if "://" in word or word.startswith("/dev/video"):
        return Camera(word, sampling=sampling)
    if _is_video(Path(word)):
        return VideoFile(place, sampling)
    return PictureFiles(place, sampling)


def _is_video(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return not path.is_dir()
    if suffix in IMAGE_SUFFIXES or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:  # the frame's error says why
        return False
    if image_kind(head) is not None:
        return False
    return is_video(head) or _opens_as_video(path, head)


def _opens_as_video(path: Path, head: bytes) -> bool:
    """Return True if OpenCV, where it is installed, reads a frame from a file of no known type."""
    if b"\0" not in head:  # FFmpeg draws the letters of some text files
        return False
    try:
        with closing(Capture(str(path))) as capture:
            return capture.advance(1) is not None
    except (ModuleNotFoundError, OSError):
        return False
