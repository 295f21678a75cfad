"""Detectors: models that run on the device, behind one protocol.

The detector classes are imported on first access: the edge core needs neither numpy nor ONNX
Runtime nor ultralytics.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from edge.detect.base import (
    Detector,
    DetectorResult,
    Image,
    Thresholds,
    Tracker,
    close_detector,
)
from edge.detect.limits import DeviceImageLimits

if TYPE_CHECKING:
    from edge.detect.onnx import OnnxDetector
    from edge.detect.process import ProcessDetector
    from edge.detect.ultralytics import UltralyticsDetector

__all__ = [
    "Detector",
    "DetectorResult",
    "DeviceImageLimits",
    "Image",
    "OnnxDetector",
    "ProcessDetector",
    "Thresholds",
    "Tracker",
    "UltralyticsDetector",
    "close_detector",
]

_MODULES = {
    "OnnxDetector": "edge.detect.onnx",
    "ProcessDetector": "edge.detect.process",
    "UltralyticsDetector": "edge.detect.ultralytics",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
