"""Image decoding, preprocessing and ONNX Runtime models, shared by the edge and the service.

Boxes are always ``(x1, y1, x2, y2)`` in pixels of the *upright* image: the one that `decode_image`
returns, after its EXIF orientation has been applied. Nothing here reads a clock or a socket; only
the `load` of a model reads a file.
"""

from servicekit.mask_formats import MaskFormat
from servicekit.media_kinds import CONTRACT_FORMATS, OWN_FORMATS
from vision.classify import Classes, Scores, decode_classes, softmax, to_logits
from vision.detections import Detections
from vision.errors import ImageError, ModelError
from vision.images import (
    DEFAULT_LIMITS,
    ImageInfo,
    ImageLimits,
    OpenedImage,
    decode_image,
    decode_opened,
    inspect_image,
    open_image,
    sha256,
)
from vision.keypoints import COCO_KEYPOINTS
from vision.layouts import Layout, detect_layout
from vision.letterbox import Letterbox, letterbox_image
from vision.mask_limits import fit_mask
from vision.masks import (
    PolygonMask,
    RleMask,
    check_mask_format,
    decode_rle,
    encode_rle,
    trace_polygons,
)
from vision.metadata import ModelMetadata, parse_metadata
from vision.network import OnnxNetwork
from vision.onnx_classifier import OnnxClassifier
from vision.onnx_session import OnnxSession, TensorInfo
from vision.onnx_yolo import YOLO_TASKS, OnnxYolo
from vision.preprocess import Interpolation, Preprocess, preprocess_image
from vision.session_options import SessionOptions
from vision.yolo import YoloHead, decode_end_to_end, decode_output, decode_yolov8

__all__ = [
    "COCO_KEYPOINTS",
    "CONTRACT_FORMATS",
    "DEFAULT_LIMITS",
    "OWN_FORMATS",
    "YOLO_TASKS",
    "Classes",
    "Detections",
    "ImageError",
    "ImageInfo",
    "ImageLimits",
    "Interpolation",
    "Layout",
    "Letterbox",
    "MaskFormat",
    "ModelError",
    "ModelMetadata",
    "OnnxClassifier",
    "OnnxNetwork",
    "OnnxSession",
    "OnnxYolo",
    "OpenedImage",
    "PolygonMask",
    "Preprocess",
    "RleMask",
    "Scores",
    "SessionOptions",
    "TensorInfo",
    "YoloHead",
    "check_mask_format",
    "decode_classes",
    "decode_end_to_end",
    "decode_image",
    "decode_opened",
    "decode_output",
    "decode_rle",
    "decode_yolov8",
    "detect_layout",
    "encode_rle",
    "fit_mask",
    "inspect_image",
    "letterbox_image",
    "open_image",
    "parse_metadata",
    "preprocess_image",
    "sha256",
    "softmax",
    "to_logits",
    "trace_polygons",
]
