"""Construction of the device's detector from the settings; it imports the runtime on demand."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edge.detect.base import Detector, Thresholds, Tracker
from edge.detect.limits import DeviceImageLimits
from edge.settings import EdgeSettings
from servicekit.standard_streams import open_closed


def load_detector(settings: EdgeSettings) -> Detector | None:
    """Return the device's detector, warmed up; None: there is none, or the mode does not use it.

    If `device_process` is set, it runs in a separate process, which `close_detector` ends.

    Raises:
        vision.ModelError: the file or the providers cannot be used.
        ModuleNotFoundError: the detector's runtime is not installed.
        SightlineError: the model's process ended while it loaded (`DEVICE_CRASHED`), took too long
            (`DEVICE_HUNG`), or its runtime raised another exception (`DEVICE_FAILED`).
    """
    if settings.device_model is None or settings.mode == "cloud":
        return None
    open_closed()
    make = _factory(settings, settings.device_model)
    if not settings.device_process:
        return make()
    from edge.detect.process import ProcessDetector

    return ProcessDetector(make, hang_seconds=settings.device_hang_seconds)


def _factory(settings: EdgeSettings, path: Path) -> Callable[[], Detector]:
    """Return the factory of the detector, which can be pickled for another process."""
    name, version = settings.device_model_name or None, settings.device_model_version or None
    common = (path.absolute(), name, version, _thresholds(settings), settings.image_limits)
    if settings.detector == "ultralytics":
        return partial(_ultralytics, *common, settings.device_tracker or None)
    return partial(_onnx, *common, settings.device_providers)


def _onnx(
    path: Path,
    name: str | None,
    version: str | None,
    thresholds: Thresholds,
    limits: DeviceImageLimits,
    providers: Sequence[str],
) -> Detector:
    from edge.detect.onnx import OnnxDetector

    return OnnxDetector(
        path,
        name=name,
        version=version,
        thresholds=thresholds,
        limits=limits,
        providers=providers,
    )


def _ultralytics(
    path: Path,
    name: str | None,
    version: str | None,
    thresholds: Thresholds,
    limits: DeviceImageLimits,
    tracker: Tracker | None,
) -> Detector:
    from edge.detect.ultralytics import UltralyticsDetector

    return UltralyticsDetector(
        path,
        name=name,
        version=version,
        thresholds=thresholds,
        limits=limits,
        tracker=tracker,
    )


def _thresholds(settings: EdgeSettings) -> Thresholds:
    default = Thresholds()
    confidence, iou, max_detections = (
        settings.confidence_threshold,
        settings.iou_threshold,
        settings.max_detections,
    )
    return Thresholds(
        default.confidence if confidence is None else confidence,
        default.iou if iou is None else iou,
        default.max_detections if max_detections is None else max_detections,
        mask_format=settings.mask_format,
        polygon_tolerance=settings.polygon_tolerance,
    )
