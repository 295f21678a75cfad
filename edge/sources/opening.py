"""Which kind of source a person means by a word."""

from pathlib import Path

from edge.sources.camera import Camera
from edge.sources.frame import FrameSource
from edge.sources.pictures import PictureFiles
from edge.sources.sampling import Sampling
from edge.sources.video import SUFFIXES, VideoFile


def open_source(place: str | Path, sampling: Sampling | None = None) -> FrameSource:
    """Return the source of images that a word names; nothing is read yet.

    Args:
        place: a number or `/dev/video...` (a local camera), a URL with `://` (a camera over the
            network), a video file by its suffix, else an image, a folder or a pattern.
        sampling: which frames are wanted; None: all.

    Raises:
        SightlineError: INVALID_ARGUMENT: there is no such file, or no image.
        ModuleNotFoundError: it needs OpenCV, which is not installed (the extra `video`).
    """
    word = str(place)
    if word.isdigit() and not Path(word).exists():
        return Camera(int(word), sampling=sampling)
    if "://" in word or word.startswith("/dev/video"):
        return Camera(word, sampling=sampling)
    if Path(word).suffix.lower() in SUFFIXES:
        return VideoFile(place, sampling)
    return PictureFiles(place, sampling)
