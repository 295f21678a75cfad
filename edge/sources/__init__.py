"""Sources of a node's images: files, folders, videos and cameras."""

from edge.sources.camera import Camera
from edge.sources.frame import Frame, FrameSource, SourceMonitor
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
    "SourceMonitor",
    "VideoFile",
    "open_source",
]
