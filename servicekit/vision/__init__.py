"""Pictures in, detections out: what the edge's ONNX detector and the inference service share.

Boxes are everywhere ``(x1, y1, x2, y2)`` in pixels of the *upright* picture: the one that
`decode_image` returns, after its EXIF orientation has been applied. Nothing here reads a clock or a
socket; only `OnnxDetector.load` reads a file.
"""

from servicekit.vision.errors import ImageError, ModelError
from servicekit.vision.images import (
    DEFAULT_LIMITS,
    ImageInfo,
    ImageLimits,
    decode_image,
    inspect_image,
    sha256,
)
from servicekit.vision.letterbox import Letterbox, letterbox_image
from servicekit.vision.metadata import ModelMetadata, parse_metadata
from servicekit.vision.onnx_model import OnnxDetector
from servicekit.vision.onnx_session import OnnxSession
from servicekit.vision.yolo import (
    Detections,
    Layout,
    decode_end_to_end,
    decode_yolov8,
    detect_layout,
)

__all__ = [
    "DEFAULT_LIMITS",
    "Detections",
    "ImageError",
    "ImageInfo",
    "ImageLimits",
    "Layout",
    "Letterbox",
    "ModelError",
    "ModelMetadata",
    "OnnxDetector",
    "OnnxSession",
    "decode_end_to_end",
    "decode_image",
    "decode_yolov8",
    "detect_layout",
    "inspect_image",
    "letterbox_image",
    "parse_metadata",
    "sha256",
]
