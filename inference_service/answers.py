"""Conversion of results into the messages of the contract."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from sightline.inference.v1 import inference_pb2, inference_service_pb2
from sightline.types.v1 import prediction_pb2

from inference_service.domain import ImagePrediction, Timing
from inference_service.models.engine import ImageWork, Model
from inference_service.models.repository import Models
from inference_service.serving.work import Outputs
from inference_service.uploads.receive import Uploaded
from servicekit.errors import SightlineError
from vision import Classes, Detections, OnnxYolo, PolygonMask, RleMask

_TASKS: Mapping[str, inference_pb2.ModelTask.ValueType] = {
    "detect": inference_pb2.MODEL_TASK_DETECT,
    "segment": inference_pb2.MODEL_TASK_SEGMENT,
    "pose": inference_pb2.MODEL_TASK_POSE,
    "obb": inference_pb2.MODEL_TASK_OBB,
    "classify": inference_pb2.MODEL_TASK_CLASSIFY,
}


@dataclass(slots=True)
class ResultWork:
    """The processing of one image up to its message; see `serving.work.MemberWork`.

    The message is made in the worker: thousands of keypoints or polygon points would occupy the
    event loop.
    """

    image_work: ImageWork

    @property
    def rows(self) -> int:
        """Number of rows of the network's input."""
        return self.image_work.rows

    @property
    def effort(self) -> int:
        """Number of pixels to decode."""
        return self.image_work.effort

    def prepare(self) -> NDArray[np.float32]:
        """Return the network's input; see `ImageWork.prepare`."""
        return self.image_work.prepare()

    def finish(self, outputs: Outputs) -> inference_pb2.ImageResult:
        """Return the result for the image; for the errors see `ImageWork.finish`."""
        work = self.image_work
        prediction = work.finish(outputs)
        return image_result(work.image.image_id, prediction, work.model.network.names)


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
        _add_detections(result, prediction.result, names)
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


def _add_detections(
    result: inference_pb2.ImageResult, detections: Detections, names: Mapping[int, str]
) -> None:
    rows = zip(
        detections.class_id.tolist(),
        detections.confidence.tolist(),
        detections.xyxy.tolist(),
        strict=True,
    )
    for class_id, confidence, (x1, y1, x2, y2) in rows:
        result.detections.add(
            class_id=class_id,
            class_name=names[class_id],
            confidence=confidence,
            box=prediction_pb2.BoundingBox(x_min=x1, y_min=y1, x_max=x2, y_max=y2),
        )
    if detections.rotated is not None:
        _add_rotated(result.detections, detections.rotated)
    if detections.keypoints is not None:
        _add_keypoints(result.detections, detections.keypoints)
    if detections.masks is not None:
        for message, mask in zip(result.detections, detections.masks, strict=True):
            _add_mask(message, mask)


def _add_rotated(
    messages: Iterable[prediction_pb2.Detection], rotated: NDArray[np.float32]
) -> None:
    for message, (x, y, width, height, angle) in zip(messages, rotated.tolist(), strict=True):
        box = prediction_pb2.RotatedBox(
            center_x=x, center_y=y, width=width, height=height, angle=angle
        )
        message.rotated_box.CopyFrom(box)


def _add_keypoints(
    messages: Iterable[prediction_pb2.Detection], keypoints: NDArray[np.float32]
) -> None:
    for message, points in zip(messages, keypoints.tolist(), strict=True):
        for x, y, *confidence in points:
            message.keypoints.add(x=x, y=y, confidence=confidence[0] if confidence else None)


def _add_mask(message: prediction_pb2.Detection, mask: RleMask | PolygonMask) -> None:
    """Add a mask, unless it is of polygons and no pixel belongs to it."""
    if isinstance(mask, RleMask):
        message.mask.CopyFrom(
            prediction_pb2.Mask(width=mask.width, height=mask.height, rle=mask.counts)
        )
        return
    for ring in mask.rings:
        message.mask.polygons.add(points=ring.ravel().tolist())


def _class_scores(classes: Classes, names: Mapping[int, str]) -> Iterator[inference_pb2.ClassScore]:
    rows = zip(classes.class_id.tolist(), classes.probability.tolist(), strict=True)
    for class_id, probability in rows:
        yield inference_pb2.ClassScore(
            class_id=class_id, class_name=names.get(class_id, ""), probability=probability
        )


def _model_info(model: Model, models: Models) -> inference_pb2.ModelInfo:
    height, width = model.network.input_size
    names = model.network.names
    network = model.network
    return inference_pb2.ModelInfo(
        name=model.name,
        version=model.version,
        task=_TASKS[model.spec.task],
        labels=[names[class_id] for class_id in sorted(names)],
        input_width=width,
        input_height=height,
        provider=model.network.provider,
        default_version=models.is_default_version(model),
        default_model=model.name == models.default,
        keypoint_names=network.keypoint_names if isinstance(network, OnnxYolo) else (),
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
