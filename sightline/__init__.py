"""Sightline's public names: `from sightline import PredictionLogger, EdgeNode, InferenceClient`.

A name is imported when it is first used, so that a device loads only what it needs. `__version__`
is the version that is installed. The stubs of the contract are in `sightline.ingest.v1`,
`sightline.inference.v1` and `sightline.types.v1`.
"""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.cloud.aio_client import AsyncInferenceClient
    from edge.cloud.client import InferenceClient
    from edge.cloud.types import (
        ImageAnswer,
        InferAnswer,
        InferParameters,
        ModelHint,
        StageSeconds,
    )
    from edge.decide.answer import Answer
    from edge.decide.cloud_health import BreakerState
    from edge.decide.coordinator import InferenceCoordinator
    from edge.decide.counters import CoordinatorStats
    from edge.decide.policy import Cascade, Mode, Policy
    from edge.detect import (
        Detector,
        DetectorResult,
        DeviceImageLimits,
        OnnxDetector,
        ProcessDetector,
        Thresholds,
        UltralyticsDetector,
    )
    from edge.detections import DetectionArrays
    from edge.errors import (
        Attempt,
        CascadeRuleError,
        ClosedError,
        CloudError,
        CoordinatorClosedError,
        DeviceError,
        EdgeError,
    )
    from edge.geometry import Keypoint, Mask, RotatedBox
    from edge.log.adapters import from_ultralytics
    from edge.log.logger import PredictionLogger
    from edge.log.stats import LoggerStats
    from edge.log.supervision_adapters import (
        from_supervision,
        to_supervision,
        to_supervision_keypoints,
    )
    from edge.node import EdgeNode
    from edge.options import LogOptions
    from edge.records import Box, CloudReason, Detection, Prediction, Source
    from edge.run import Outcome
    from edge.settings import EdgeSettings
    from edge.sources import Camera, Frame, FrameSource, PictureFiles, Sampling, VideoFile
    from edge.tally import NodeStats
    from servicekit.errors import SightlineError
    from sightline.log_client import LogClient, QueryResult, connect

    __version__: str

# In a checkout the stubs are in `generated/`; an installed wheel has them in this folder.
__path__ = extend_path(__path__, __name__)

__all__ = [
    "Answer",
    "AsyncInferenceClient",
    "Attempt",
    "Box",
    "BreakerState",
    "Camera",
    "Cascade",
    "CascadeRuleError",
    "ClosedError",
    "CloudError",
    "CloudReason",
    "CoordinatorClosedError",
    "CoordinatorStats",
    "Detection",
    "DetectionArrays",
    "Detector",
    "DetectorResult",
    "DeviceError",
    "DeviceImageLimits",
    "EdgeError",
    "EdgeNode",
    "EdgeSettings",
    "Frame",
    "FrameSource",
    "ImageAnswer",
    "InferAnswer",
    "InferParameters",
    "InferenceClient",
    "InferenceCoordinator",
    "Keypoint",
    "LogClient",
    "LogOptions",
    "LoggerStats",
    "Mask",
    "Mode",
    "ModelHint",
    "NodeStats",
    "OnnxDetector",
    "Outcome",
    "PictureFiles",
    "Policy",
    "Prediction",
    "PredictionLogger",
    "ProcessDetector",
    "QueryResult",
    "RotatedBox",
    "Sampling",
    "SightlineError",
    "Source",
    "StageSeconds",
    "Thresholds",
    "UltralyticsDetector",
    "VideoFile",
    "connect",
    "from_supervision",
    "from_ultralytics",
    "to_supervision",
    "to_supervision_keypoints",
]

_MODULES = {
    # Logging
    "Box": "edge.records",
    "ClosedError": "edge.errors",
    "CloudReason": "edge.records",
    "Detection": "edge.records",
    "DetectionArrays": "edge.records",
    "Keypoint": "edge.records",
    "LogOptions": "edge.options",
    "LoggerStats": "edge.log.stats",
    "Mask": "edge.records",
    "Prediction": "edge.records",
    "PredictionLogger": "edge.log.logger",
    "RotatedBox": "edge.records",
    "Source": "edge.records",
    "from_supervision": "edge.log.supervision_adapters",
    "from_ultralytics": "edge.log.adapters",
    "to_supervision": "edge.log.supervision_adapters",
    "to_supervision_keypoints": "edge.log.supervision_adapters",
    # Answering
    "Answer": "edge.decide.answer",
    "AsyncInferenceClient": "edge.cloud.aio_client",
    "Attempt": "edge.errors",
    "Detector": "edge.detect",
    "DetectorResult": "edge.detect",
    "DeviceImageLimits": "edge.detect",
    "EdgeNode": "edge.node",
    "EdgeSettings": "edge.settings",
    "ImageAnswer": "edge.cloud.types",
    "InferAnswer": "edge.cloud.types",
    "InferParameters": "edge.cloud.types",
    "InferenceClient": "edge.cloud.client",
    "InferenceCoordinator": "edge.decide.coordinator",
    "Mode": "edge.decide.policy",
    "ModelHint": "edge.cloud.types",
    "StageSeconds": "edge.cloud.types",
    "NodeStats": "edge.tally",
    "OnnxDetector": "edge.detect",
    "Policy": "edge.decide.policy",
    "BreakerState": "edge.decide.cloud_health",
    "Cascade": "edge.decide.policy",
    "CascadeRuleError": "edge.errors",
    "CloudError": "edge.errors",
    "CoordinatorClosedError": "edge.errors",
    "CoordinatorStats": "edge.decide.counters",
    "DeviceError": "edge.errors",
    "EdgeError": "edge.errors",
    "SightlineError": "servicekit.errors",
    "Outcome": "edge.run",
    "ProcessDetector": "edge.detect",
    "Thresholds": "edge.detect",
    "UltralyticsDetector": "edge.detect",
    # SQL over the log
    "LogClient": "sightline.log_client",
    "QueryResult": "sightline.log_client",
    "connect": "sightline.log_client",
    # Sources of pictures
    "Camera": "edge.sources",
    "Frame": "edge.sources",
    "FrameSource": "edge.sources",
    "PictureFiles": "edge.sources",
    "Sampling": "edge.sources",
    "VideoFile": "edge.sources",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from servicekit.distribution import version

        return version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
