"""Construction of the source that a path, URL or camera number names."""

from pathlib import Path

from edge.sources.camera import Camera
from edge.sources.frame import FrameSource
from edge.sources.pictures import PictureFiles
from edge.sources.sampling import Sampling
from edge.sources.video import SUFFIXES, VideoFile


def open_source(place: str | Path, sampling: Sampling | None = None) -> FrameSource:
    """Return the source that a place names, without reading from it.

    Args:
        place: a number or `/dev/video...` (a local camera), a URL with `://` (a network camera),
            the path of a video file, recognized by its suffix, or an image, a folder or a pattern.
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
    if Path(word).suffix.lower() in SUFFIXES:
        return VideoFile(place, sampling)
    return PictureFiles(place, sampling)
