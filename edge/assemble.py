"""Construction of an edge node's parts from its settings."""

from edge.cloud.client import InferenceClient
from edge.cloud.types import InferParameters, ModelHint
from edge.decide.policy import Cascade, Mode, Policy
from edge.endpoints import inference_endpoint
from edge.settings import EdgeSettings


def client(settings: EdgeSettings) -> InferenceClient | None:
    """Return the client of the inference service; None: the mode does not use it.

    Raises:
        servicekit.settings.SettingsError: a file that a setting names cannot be used.
        ValueError: the API key would be sent to another machine in plain text.
    """
    if settings.mode == "device":
        return None
    return InferenceClient(
        inference_endpoint(settings),
        timeout=settings.timeout_seconds,
        upload_above_bytes=settings.upload_above_bytes,
        downscale=settings.cloud_downscale,
        limits=settings.image_limits,
    )


def policy(settings: EdgeSettings) -> Policy:
    """Return the policy of the coordinator."""
    return Policy(
        mode=Mode(settings.mode),
        timeout=settings.timeout_seconds,
        cloud_reserve=settings.cloud_reserve_seconds,
        cascade=Cascade(
            low=settings.cascade_low,
            high=settings.cascade_high,
            any=settings.cascade_any,
            empty=settings.cascade_empty,
        ),
        breaker_failures=settings.breaker_failures,
        breaker_seconds=settings.breaker_seconds,
        retry_tokens=settings.retry_tokens,
        retry_token_ratio=settings.retry_token_ratio,
        takes_other_labels=settings.cloud_labels == "any",
        cloud_label_map=settings.label_map,
    )


def cloud_model(settings: EdgeSettings) -> ModelHint | None:
    """Return the model of the service to use; None: its default."""
    if not settings.cloud_model and not settings.cloud_model_version:
        return None
    return ModelHint(settings.cloud_model, settings.cloud_model_version)


def parameters(settings: EdgeSettings) -> InferParameters:
    """Return thresholds and limits for the service's answers, and the format of masks."""
    return InferParameters(
        confidence_threshold=settings.confidence_threshold,
        iou_threshold=settings.iou_threshold,
        max_detections=settings.max_detections,
        mask_format=settings.mask_format,
        polygon_tolerance=settings.polygon_tolerance,
    )
