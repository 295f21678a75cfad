"""The parts of an edge node, made as its settings say."""

from edge.channel import Endpoint
from edge.cloud.client import InferenceClient
from edge.cloud.types import InferParameters, ModelHint
from edge.decide.answer import Mode, Policy
from edge.detect.base import Detector, Thresholds
from edge.settings import EdgeSettings


def detector(settings: EdgeSettings) -> Detector | None:
    """Returns the device's model, warmed up; None: there is none, or the mode does not ask it.

    Raises:
        servicekit.vision.ModelError: the file or the providers cannot be used.
    """
    if settings.device_model is None or settings.mode == "cloud":
        return None
    path = settings.device_model
    name, version = settings.device_model_name or None, settings.device_model_version or None
    thresholds = _thresholds(settings)
    if settings.detector == "ultralytics":
        from edge.detect.ultralytics import UltralyticsDetector

        return UltralyticsDetector(path, name=name, version=version, thresholds=thresholds)
    from edge.detect.onnx import OnnxDetector

    return OnnxDetector(
        path,
        name=name,
        version=version,
        thresholds=thresholds,
        providers=settings.device_providers,
    )


def client(settings: EdgeSettings) -> InferenceClient | None:
    """Returns the connection to the inference service; None: the mode does not ask it.

    Raises:
        servicekit.settings.SettingsError: a file that a setting names cannot be used.
        ValueError: the API key would leave this machine in plain text.
    """
    if settings.mode == "device":
        return None
    return InferenceClient(Endpoint.to_inference(settings), timeout=settings.timeout_seconds)


def policy(settings: EdgeSettings) -> Policy:
    """Returns who may answer, and how long it may take."""
    return Policy(
        mode=Mode(settings.mode),
        timeout=settings.timeout_seconds,
        cloud_reserve=settings.cloud_reserve_seconds,
    )


def cloud_model(settings: EdgeSettings) -> ModelHint | None:
    """Returns which model of the service should answer; None: its default."""
    if not settings.cloud_model and not settings.cloud_model_version:
        return None
    return ModelHint(settings.cloud_model, settings.cloud_model_version)


def parameters(settings: EdgeSettings) -> InferParameters:
    """Returns how the service makes its answers."""
    return InferParameters(
        confidence_threshold=settings.confidence_threshold,
        iou_threshold=settings.iou_threshold,
        max_detections=settings.max_detections,
    )


def _thresholds(settings: EdgeSettings) -> Thresholds:
    usual = Thresholds()
    confidence, iou, most = (
        settings.confidence_threshold,
        settings.iou_threshold,
        settings.max_detections,
    )
    return Thresholds(
        usual.confidence if confidence is None else confidence,
        usual.iou if iou is None else iou,
        usual.max_detections if most is None else most,
    )
