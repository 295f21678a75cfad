"""Sightline on the device: detect, decide, log, spool, ship; and ask the cloud.

Names are imported when they are first used, so that a device loads only what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.cloud.client import AsyncInferenceClient, InferenceClient
    from edge.cloud.types import InferAnswer, InferParameters, ModelHint
    from edge.decide.answer import Answer, Attempt, Mode, Policy
    from edge.decide.coordinator import InferenceCoordinator
    from edge.detect import Detector, DetectorResult, OnnxDetector, Thresholds, UltralyticsDetector
    from edge.detections import DetectionArrays
    from edge.log.adapters import from_supervision, from_ultralytics
    from edge.log.logger import ClosedError, LoggerStats, LogOptions, PredictionLogger
    from edge.node import EdgeNode, NodeStats
    from edge.records import Box, CloudReason, Detection, Prediction, Source
    from edge.settings import EdgeSettings

__all__ = [
    "Answer",
    "AsyncInferenceClient",
    "Attempt",
    "Box",
    "ClosedError",
    "CloudReason",
    "Detection",
    "DetectionArrays",
    "Detector",
    "DetectorResult",
    "EdgeNode",
    "EdgeSettings",
    "InferAnswer",
    "InferParameters",
    "InferenceClient",
    "InferenceCoordinator",
    "LogOptions",
    "LoggerStats",
    "Mode",
    "ModelHint",
    "NodeStats",
    "OnnxDetector",
    "Policy",
    "Prediction",
    "PredictionLogger",
    "Source",
    "Thresholds",
    "UltralyticsDetector",
    "from_supervision",
    "from_ultralytics",
]

_MODULES = {
    # Logging
    "Box": "edge.records",
    "ClosedError": "edge.log.logger",
    "CloudReason": "edge.records",
    "Detection": "edge.records",
    "DetectionArrays": "edge.records",
    "LogOptions": "edge.log.logger",
    "LoggerStats": "edge.log.logger",
    "Prediction": "edge.records",
    "PredictionLogger": "edge.log.logger",
    "Source": "edge.records",
    "from_supervision": "edge.log.adapters",
    "from_ultralytics": "edge.log.adapters",
    # Answering
    "Answer": "edge.decide.answer",
    "AsyncInferenceClient": "edge.cloud.client",
    "Attempt": "edge.decide.answer",
    "Detector": "edge.detect",
    "DetectorResult": "edge.detect",
    "EdgeNode": "edge.node",
    "EdgeSettings": "edge.settings",
    "InferAnswer": "edge.cloud.types",
    "InferParameters": "edge.cloud.types",
    "InferenceClient": "edge.cloud.client",
    "InferenceCoordinator": "edge.decide.coordinator",
    "Mode": "edge.decide.answer",
    "ModelHint": "edge.cloud.types",
    "NodeStats": "edge.node",
    "OnnxDetector": "edge.detect",
    "Policy": "edge.decide.answer",
    "Thresholds": "edge.detect",
    "UltralyticsDetector": "edge.detect",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
