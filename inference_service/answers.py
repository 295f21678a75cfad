"""Conversion of results into the messages of the contract."""

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.inference.v1 import inference_pb2, inference_service_pb2
from sightline.types.v1 import prediction_pb2

from inference_service.domain import ImagePrediction, Timing
from inference_service.models.engine import Model
from inference_service.models.repository import Models
from inference_service.uploads.receive import Uploaded
from servicekit.errors import SightlineError
from vision import Classes, Detections, OnnxClassifier


def image_result(
    image_id: str, prediction: ImagePrediction, names: Mapping[int, str]
) -> inference_pb2.ImageResult:
    """Return the result for one image."""
    result = inference_pb2.ImageResult(
        image_id=image_id, image_width=prediction.width, image_height=prediction.height
    )
    if isinstance(prediction.result, Classes):
        result.classes.extend(_class_scores(prediction.result, names))
    else:
        result.detections.extend(_detections(prediction.result, names))
    return result


def image_error(image_id: str, error: SightlineError) -> inference_pb2.ImageResult:
    """Return the result for one image that failed."""
    return inference_pb2.ImageResult(
        image_id=image_id,
        error=inference_pb2.ImageError(
            code=error.code.value[0], reason=error.reason, message=error.message
        ),
    )


def response(
    results: Sequence[inference_pb2.ImageResult], model: Model, timing: Timing
) -> inference_service_pb2.InferResponse:
    """Return the response to a request."""
    return inference_service_pb2.InferResponse(
        results=results,
        model_name=model.name,
        model_version=model.version,
        timing=inference_pb2.StageTiming(
            validate=_duration(timing.validate),
            queue=_duration(timing.queue),
            decode=_duration(timing.decode),
            infer=_duration(timing.infer),
            post=_duration(timing.post),
            total=_duration(timing.total),
        ),
    )


def model_list(models: Models) -> inference_service_pb2.ListModelsResponse:
    """Return the loaded models, ordered by name and version."""
    return inference_service_pb2.ListModelsResponse(
        models=[_model_info(model, models) for model in models.all]
    )


def _detections(
    detections: Detections, names: Mapping[int, str]
) -> Iterator[prediction_pb2.Detection]:
    rows = zip(
        detections.class_id.tolist(),
        detections.confidence.tolist(),
        detections.xyxy.tolist(),
        strict=True,
    )
    for class_id, confidence, (x1, y1, x2, y2) in rows:
        yield prediction_pb2.Detection(
            class_id=class_id,
            class_name=names[class_id],
            confidence=confidence,
            box=prediction_pb2.BoundingBox(x_min=x1, y_min=y1, x_max=x2, y_max=y2),
        )


def _class_scores(classes: Classes, names: Mapping[int, str]) -> Iterator[inference_pb2.ClassScore]:
    rows = zip(classes.class_id.tolist(), classes.probability.tolist(), strict=True)
    for class_id, probability in rows:
        yield inference_pb2.ClassScore(
            class_id=class_id, class_name=names.get(class_id, ""), probability=probability
        )


def _model_info(model: Model, models: Models) -> inference_pb2.ModelInfo:
    height, width = model.network.input_size
    names = model.network.names
    classifies = isinstance(model.network, OnnxClassifier)
    return inference_pb2.ModelInfo(
        name=model.name,
        version=model.version,
        task=(inference_pb2.MODEL_TASK_CLASSIFY if classifies else inference_pb2.MODEL_TASK_DETECT),
        labels=[names[class_id] for class_id in sorted(names)],
        input_width=width,
        input_height=height,
        provider=model.network.provider,
        default_version=models.is_default_version(model),
        default_model=model.name == models.default,
    )


def uploaded(upload: Uploaded) -> inference_service_pb2.UploadImageResponse:
    """Return the response to an upload."""
    expires_at = Timestamp()
    expires_at.FromMilliseconds(round(upload.claim.expires_at * 1000))
    return inference_service_pb2.UploadImageResponse(
        image=inference_pb2.ImageReference(
            reference=upload.reference,
            sha256=upload.claim.sha256,
            size_bytes=upload.claim.size,
            expires_at=expires_at,
        )
    )


def _duration(seconds: float) -> Duration:
    whole, nanos = divmod(round(seconds * 1e9), 10**9)
    return Duration(seconds=whole, nanos=nanos)
