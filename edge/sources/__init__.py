"""Where a node's pictures come from: files, folders, videos, cameras."""

from edge.sources.camera import Camera
from edge.sources.frame import Frame, FrameSource, Watch
from edge.sources.opening import open_source
from edge.sources.pictures import PictureFiles
from edge.sources.sampling import Sampling
from edge.sources.video import VideoFile

__all__ = [
    "Camera",
    "Frame",
    "FrameSource",
    "PictureFiles",
    "Sampling",
    "VideoFile",
    "Watch",
    "open_source",
]
