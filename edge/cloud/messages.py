"""Conversion of requests and answers of the inference service to and from protobuf. No network.

Requests that the service would reject as malformed are rejected here, before anything is sent.
"""

import hashlib
import platform
import re
import uuid
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2
from sightline.inference.v1 import inference_pb2, inference_service_pb2
from sightline.types.v1 import prediction_pb2

from edge.cloud.call import InferCall
from edge.cloud.downscale import LARGEST, Scale, downscaled, is_too_large
from edge.cloud.types import (
    ClassScore,
    ImageAnswer,
    InferAnswer,
    InferParameters,
    ModelHint,
    ModelInfo,
    ModelTask,
    StageSeconds,
)
from edge.detect.base import Image
from edge.detect.images import ArrayFormat, encode, for_service, pixels
from edge.detect.limits import DEVICE_LIMITS, DeviceImageLimits
from edge.records import Box, Detection, Keypoint, Mask, RotatedBox
from servicekit.contract_bounds import (
    MAX_CLASS_NAME_BYTES,
    MAX_CONTEXT,
    MAX_CONTEXT_KEY_BYTES,
    MAX_CONTEXT_VALUE_BYTES,
    MAX_DETECTIONS,
    MAX_POLYGON_TOLERANCE,
)
from servicekit.distribution import version
from servicekit.errors import SightlineError, from_status, invalid
from servicekit.names import readable

KEY = "idempotency-key"
REPLAYED = "idempotent-replayed"
TRACEPARENT = "traceparent"

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_MAX_TIMEOUT = 3600.0
_TASKS = {
    inference_pb2.MODEL_TASK_DETECT: ModelTask.DETECT,
    inference_pb2.MODEL_TASK_CLASSIFY: ModelTask.CLASSIFY,
    inference_pb2.MODEL_TASK_SEGMENT: ModelTask.SEGMENT,
    inference_pb2.MODEL_TASK_POSE: ModelTask.POSE,
    inference_pb2.MODEL_TASK_OBB: ModelTask.OBB,
}
_MASK_FORMATS: Mapping[str | None, "inference_pb2.MaskFormat.ValueType | None"] = {
    None: None,
    "off": inference_pb2.MASK_FORMAT_OFF,
    "polygon": inference_pb2.MASK_FORMAT_POLYGON,
    "rle": inference_pb2.MASK_FORMAT_RLE,
}


@dataclass(frozen=True, slots=True)
class Fitting:
    """The downscaling of the images of a request.

    Attributes:
        size: width and height of the model's input in pixels, to which larger images are
            downscaled; None: it is not known, or the model crops images itself, and only images
            that the service refuses by default are downscaled.
    """

    size: tuple[int, int] | None


def prepare(
    images: Sequence[Image],
    *,
    image_ids: Sequence[str] = (),
    model: ModelHint | None = None,
    parameters: InferParameters | None = None,
    idempotency_key: str | None = None,
    traceparent: str = "",
    context: Mapping[str, str] | None = None,
    array_format: ArrayFormat = "jpeg",
    fitting: Fitting | None = None,
    limits: DeviceImageLimits = DEVICE_LIMITS,
) -> InferCall:
    """Return a checked request; see `edge.cloud.client.InferenceClient.infer`.

    `fitting` says which images are downscaled. None: images are sent in full size. `limits` are
    those of the device on the images that it reads.

    Raises:
        SightlineError: INVALID_ARGUMENT, naming the field and its bound.
    """
    _check_images(images, image_ids)
    metadata = tuple(_metadata(idempotency_key, traceparent))
    request = inference_service_pb2.InferRequest(
        model=_model(model) if model else None,
        parameters=_parameters(parameters) if parameters else None,
        context=check_context(context or {}),
        client=_client(),
    )
    files: list[bytes] = []
    scales: dict[int, Scale] = {}
    saved = 0
    names = image_ids or [""] * len(images)
    for index, (image, name) in enumerate(zip(images, names, strict=True)):
        data, scale, less = _to_send(image, array_format, fitting, limits, f"images[{index}]")
        request.images.add(image_id=name, sha256=hashlib.sha256(data).digest())
        files.append(data)
        saved += less
        if scale is not None:
            scales[index] = scale
    if scales and request.parameters.HasField("polygon_tolerance"):  # in pixels of the originals
        largest = max(max(scale.across, scale.down) for scale in scales.values())
        request.parameters.polygon_tolerance /= largest
    return InferCall(request, tuple(files), metadata, scales, saved)


def check_timeout(timeout: float) -> float:
    """Return the timeout in seconds.

    Raises:
        SightlineError: INVALID_ARGUMENT: it is not above 0 and at most 3600 s.
    """
    if not 0 < timeout <= _MAX_TIMEOUT:
        raise invalid("timeout", f"must be above 0 and at most {_MAX_TIMEOUT:g} s, got {timeout:g}")
    return timeout


def check_context(context: Mapping[str, str]) -> dict[str, str]:
    """Return the context of a request: labels by which it can be found again.

    Raises:
        SightlineError: INVALID_ARGUMENT: more than 16 labels, a key that is not 1 to 64 bytes of
            text, or a value that is not at most 256 bytes of text.
    """
    if len(context) > MAX_CONTEXT:
        raise invalid("context", f"must have at most {MAX_CONTEXT} labels, got {len(context)}")
    for key, value in context.items():
        size = _bytes_of(key)
        if not 1 <= size <= MAX_CONTEXT_KEY_BYTES:
            rule = f"must have keys of 1 to {MAX_CONTEXT_KEY_BYTES} bytes of text"
            raise invalid("context", f"{rule}, got {str(key)[:80]!r}")
        size = _bytes_of(value)
        if not 0 <= size <= MAX_CONTEXT_VALUE_BYTES:
            rule = f"must be text of at most {MAX_CONTEXT_VALUE_BYTES} bytes"
            raise invalid(f"context[{key!r}]", f"{rule}, got {str(value)[:80]!r}")
    return dict(context)


def trace_id_of(traceparent: str) -> str:
    """Return the trace id of a W3C traceparent, 32 lower-case hex digits; empty for empty text.

    Raises:
        SightlineError: INVALID_ARGUMENT: it is not a traceparent.
    """
    if not traceparent:
        return ""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        raise invalid("traceparent", "must be a W3C traceparent: 00-<32 hex>-<16 hex>-<2 hex>")
    return match[1]


def parse_answer(
    response: inference_service_pb2.InferResponse,
    trailing: Iterable[tuple[str, str | bytes]],
    call: InferCall,
) -> InferAnswer:
    """Return the service's answer to a call, in pixels of the original images.

    Raises:
        SightlineError: DATA_LOSS, `ANSWER_INVALID`: a result breaks a rule of the contract.
    """
    results = []
    for index, result in enumerate(response.results):
        try:
            image = _image_answer(result)
            if index in call.scales:
                image = call.scales[index].restored(image)
            results.append(image)
        except ValueError as error:
            raise _invalid_answer(index, error) from error
    return InferAnswer(
        results=tuple(results),
        model_name=response.model_name,
        model_version=response.model_version,
        timing=_timing(response.timing),
        idempotent_replayed=(REPLAYED, "true") in {(key, value) for key, value in trailing},
        bytes_sent=call.bytes_sent,
        bytes_saved=call.bytes_saved,
    )


def parse_models(response: inference_service_pb2.ListModelsResponse) -> tuple[ModelInfo, ...]:
    """Return the models of the service, in the order of the response."""
    return tuple(
        ModelInfo(
            name=model.name,
            version=model.version,
            task=_TASKS.get(model.task, ModelTask.UNSPECIFIED),
            labels=tuple(map(_label, model.labels)),
            input_width=model.input_width,
            input_height=model.input_height,
            provider=model.provider,
            default_version=model.default_version,
            default_model=model.default_model,
            keypoint_names=tuple(model.keypoint_names),
        )
        for model in response.models
    )


def _bytes_of(text: object) -> int:
    """Return the size of a text in UTF-8, bytes; -1: it is no text, or has no UTF-8."""
    if not isinstance(text, str):
        return -1
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1


@cache
def _client() -> inference_pb2.Client:
    system = f"{platform.system()}-{platform.machine()}".lower()
    return inference_pb2.Client(name="sightline-edge", version=version(), platform=system)


def _check_images(images: Sequence[Image], image_ids: Sequence[str]) -> None:
    if not isinstance(images, list | tuple):
        raise invalid("images", f"must be a list of images, got a {type(images).__name__}")
    if not images:
        raise invalid("images", "must have at least one image")
    if image_ids and len(image_ids) != len(images):
        rule = f"must be empty or have one name per image ({len(images)}), got {len(image_ids)}"
        raise invalid("image_ids", rule)
    for index, image_id in enumerate(image_ids):
        if _bytes_of(image_id) < 0:
            rule = f"must be text that UTF-8 can encode, got {image_id!r}"
            raise invalid(f"image_ids[{index}]", rule)


def _to_send(
    image: Image,
    array_format: ArrayFormat,
    fitting: Fitting | None,
    limits: DeviceImageLimits,
    field: str,
) -> tuple[bytes, Scale | None, int]:
    """Return the bytes to send, their scale if the image was downscaled, and the bytes saved.

    For pixels the bytes saved are 0: the full image is never encoded.
    """
    full = for_service(image, field, limits)
    too_large = fitting is not None and fitting.size is None and is_too_large(full, field, limits)
    size = LARGEST if too_large else (fitting.size if fitting else None)
    small: tuple[bytes, Scale | None] | None = None
    if size is not None:
        small = downscaled(full, size, field, limits)
    if not isinstance(full, bytes):
        return (*small, 0) if small else (encode(full, array_format), None, 0)
    if too_large and small is None:  # many bytes for few pixels
        small = encode(pixels(full, field, limits)), None
    if small is None or (len(small[0]) >= len(full) and not too_large):
        return full, None, 0
    return *small, max(len(full) - len(small[0]), 0)


def _model(model: ModelHint) -> inference_pb2.ModelHint:
    return inference_pb2.ModelHint(name=model.name, version=model.version)


def _parameters(parameters: InferParameters) -> inference_pb2.InferParameters:
    _check("confidence_threshold", parameters.confidence_threshold, 0, 1)
    _check("iou_threshold", parameters.iou_threshold, 0, 1)
    _check("max_detections", parameters.max_detections, 1, MAX_DETECTIONS)
    _check("top_k", parameters.top_k, 1, 1000)
    _check("polygon_tolerance", parameters.polygon_tolerance, 0, MAX_POLYGON_TOLERANCE)
    if parameters.mask_format not in _MASK_FORMATS:
        allowed = "polygon, rle, off or None"
        raise invalid("parameters.mask_format", f"must be {allowed}, got {parameters.mask_format}")
    return inference_pb2.InferParameters(
        confidence_threshold=parameters.confidence_threshold,
        iou_threshold=parameters.iou_threshold,
        max_detections=parameters.max_detections,
        top_k=parameters.top_k,
        mask_format=_MASK_FORMATS[parameters.mask_format],
        polygon_tolerance=parameters.polygon_tolerance,
    )


def _check(name: str, value: float | None, minimum: int, maximum: int) -> None:
    if value is not None and not minimum <= value <= maximum:
        raise invalid(f"parameters.{name}", f"must be in [{minimum}, {maximum}], got {value}")


def _metadata(idempotency_key: str | None, traceparent: str) -> Iterable[tuple[str, str]]:
    yield KEY, str(uuid.uuid4()) if idempotency_key is None else _uuid4(idempotency_key)
    if trace_id_of(traceparent):
        yield TRACEPARENT, traceparent


def _uuid4(key: str) -> str:
    try:
        parsed = uuid.UUID(key)
    except ValueError:
        parsed = None
    if parsed is None or parsed.version != 4:
        raise invalid("idempotency_key", f"must be a UUIDv4, got {key!r}")
    return str(parsed)


def _image_answer(result: inference_pb2.ImageResult) -> ImageAnswer:
    return ImageAnswer(
        image_id=result.image_id,
        image_width=result.image_width,
        image_height=result.image_height,
        detections=tuple(_detection(detection) for detection in result.detections),
        classes=tuple(
            ClassScore(score.class_id, _label(score.class_name), score.probability)
            for score in result.classes
        ),
        error=_image_error(result.error) if result.HasField("error") else None,
    )


def _label(name: str) -> str:
    """Return a label in the size that the log takes; an older service may send a longer one."""
    return readable(name, MAX_CLASS_NAME_BYTES)


def _detection(message: prediction_pb2.Detection) -> Detection:
    box = message.box
    return Detection(
        class_id=message.class_id,
        class_name=_label(message.class_name),
        confidence=message.confidence,
        box=Box(box.x_min, box.y_min, box.x_max, box.y_max) if message.HasField("box") else None,
        track_id=message.track_id if message.HasField("track_id") else None,
        rotated_box=_rotated_box(message.rotated_box) if message.HasField("rotated_box") else None,
        keypoints=tuple(
            Keypoint(p.x, p.y, p.confidence if p.HasField("confidence") else None)
            for p in message.keypoints
        ),
        mask=_mask(message.mask) if message.HasField("mask") else None,
    )


def _rotated_box(box: prediction_pb2.RotatedBox) -> RotatedBox:
    return RotatedBox(box.center_x, box.center_y, box.width, box.height, box.angle)


def _mask(mask: prediction_pb2.Mask) -> Mask:
    polygons = [array("f", polygon.points) for polygon in mask.polygons]
    return Mask(polygons, mask.rle, mask.width, mask.height)


def _invalid_answer(index: int, error: ValueError) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.DATA_LOSS,
        "ANSWER_INVALID",
        f"the service's result for images[{index}] breaks a rule: {error}",
    )


def _image_error(error: inference_pb2.ImageError) -> SightlineError:
    plain = from_status(status_pb2.Status(code=error.code, message=error.message))
    return SightlineError(plain.code, error.reason or plain.reason, plain.message)


def _timing(timing: inference_pb2.StageTiming) -> StageSeconds:
    def seconds(stage: str) -> float:
        return cast("Duration", getattr(timing, stage)).ToNanoseconds() / 1e9

    return StageSeconds(
        *(seconds(stage) for stage in ("validate", "queue", "decode", "infer", "post", "total"))
    )
