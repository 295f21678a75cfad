"""`inference.GRPCInferenceService` (Open Inference Protocol v2) over the same models.

For `tritonclient`, `perf_analyzer` and KServe's clients: health, metadata, and `ModelInfer` with
the same authentication, limits, idempotency, admission and batches as `Infer`.
"""

from inference_service.open_inference.server import service

__all__ = ["service"]
