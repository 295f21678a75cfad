"""Image decoding, preprocessing and ONNX Runtime models, shared by the edge and the service.

Boxes are always ``(x1, y1, x2, y2)`` in pixels of the *upright* image: the one that `decode_image`
returns, after its EXIF orientation has been applied. Nothing here reads a clock or a socket; only
the `load` of a model reads a file.
"""

from vision.classify import Classes, Scores, decode_classes, softmax, to_logits
from vision.errors import ImageError, ModelError
from vision.images import (
    DEFAULT_LIMITS,
    ImageInfo,
    ImageLimits,
    OpenedImage,
    decode_image,
    inspect_image,
    open_image,
    sha256,
)
from vision.letterbox import Letterbox, letterbox_image
from vision.metadata import ModelMetadata, parse_metadata
from vision.network import OnnxNetwork
from vision.onnx_classifier import OnnxClassifier
from vision.onnx_session import OnnxSession, TensorInfo
from vision.onnx_yolo import OnnxYolo
from vision.preprocess import Interpolation, Preprocess, preprocess_image
from vision.session_options import SessionOptions
from vision.yolo import (
    Detections,
    Layout,
    decode_end_to_end,
    decode_yolov8,
    detect_layout,
)

__all__ = [
    "DEFAULT_LIMITS",
    "Classes",
    "Detections",
    "ImageError",
    "ImageInfo",
    "ImageLimits",
    "Interpolation",
    "Layout",
    "Letterbox",
    "ModelError",
    "ModelMetadata",
    "OnnxClassifier",
    "OnnxNetwork",
    "OnnxSession",
    "OnnxYolo",
    "OpenedImage",
    "Preprocess",
    "Scores",
    "SessionOptions",
    "TensorInfo",
    "decode_classes",
    "decode_end_to_end",
    "decode_image",
    "decode_yolov8",
    "detect_layout",
    "inspect_image",
    "letterbox_image",
    "open_image",
    "parse_metadata",
    "preprocess_image",
    "sha256",
    "softmax",
    "to_logits",
]
