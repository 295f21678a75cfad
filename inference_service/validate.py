"""Requests in, checked questions out: size, type by content, dimensions before decoding, SHA-256.

Pure: no clock, socket or file. One bad picture is refused alone; a request with no good picture, or
with a bad field outside its pictures, is refused whole.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from inference_service.domain import Parameters, Picture, Question, Refused
from servicekit.errors import FieldViolation, SightlineError, invalid
from servicekit.vision import ImageError, ImageLimits, inspect_image

MAX_IMAGE_ID_BYTES = 512
MAX_MODEL_NAME_BYTES = 256
MAX_DETECTIONS = 10_000
MAX_TOP_K = 1000
_SHA256_BYTES = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    max_images: int = 16
    image: ImageLimits = field(default_factory=ImageLimits)


def check(request: inference_service_pb2.InferRequest, limits: Limits) -> Question:
    """Checks a request.

    Raises:
        SightlineError: INVALID_ARGUMENT with the fields that break a rule; UNIMPLEMENTED,
            `UPLOAD_NOT_IMPLEMENTED`, for a picture given by reference.
    """
    count = len(request.images)
    if not 1 <= count <= limits.max_images:
        raise invalid("images", f"must be 1 to {limits.max_images} pictures, are {count}")
    for index, image in enumerate(request.images):
        if image.HasField("reference"):
            raise _no_references(index)
    parameters = _parameters(request.parameters)
    _check_hint(request.model)
    pictures = tuple(_checked(image, i, limits.image) for i, image in enumerate(request.images))
    refuse_if_all_bad([p.error if isinstance(p, Refused) else None for p in pictures])
    return Question(request.model.name, request.model.version, parameters, pictures)


def refuse_if_all_bad(errors: Sequence[SightlineError | None]) -> None:
    """Raises one error for a request whose pictures are all bad.

    Args:
        errors: what is wrong with each picture; None: nothing.

    Raises:
        SightlineError: INVALID_ARGUMENT with every picture's violations; the reason is the
            pictures' own if they share it, else `IMAGES_INVALID`.
    """
    bad = [error for error in errors if error is not None]
    if len(bad) < len(errors):
        return
    reasons = {error.reason for error in bad}
    violations: list[FieldViolation] = [v for error in bad for v in error.violations]
    more = f" (and {len(bad) - 1} more bad pictures)" if len(bad) > 1 else ""
    raise SightlineError(
        grpc.StatusCode.INVALID_ARGUMENT,
        reasons.pop() if len(reasons) == 1 else "IMAGES_INVALID",
        bad[0].message + more,
        violations=violations,
    )


def bad_picture(index: int, error: ImageError) -> SightlineError:
    """Returns the error for a picture whose content is refused."""
    return invalid(f"images[{index}].data", f"is refused: {error.message}", reason=error.reason)


def _checked(image: inference_pb2.Image, index: int, limits: ImageLimits) -> Picture | Refused:
    data = image.data
    digest = hashlib.sha256(data).digest()
    try:
        _check_image(image, index, data, digest, limits)
    except SightlineError as error:
        return Refused(index, image.image_id, digest, error)
    return Picture(index, image.image_id, data, digest)


def _check_image(
    image: inference_pb2.Image, index: int, data: bytes, digest: bytes, limits: ImageLimits
) -> None:
    path = f"images[{index}]"
    _check_length(f"{path}.image_id", image.image_id, MAX_IMAGE_ID_BYTES)
    if len(image.sha256) not in {0, _SHA256_BYTES}:
        raise invalid(f"{path}.sha256", f"must be 32 bytes or empty, is {len(image.sha256)} bytes")
    if image.sha256 and image.sha256 != digest:
        rule = f"must be the SHA-256 of the data, which is {digest.hex()}"
        raise invalid(f"{path}.sha256", rule, reason="IMAGE_HASH_MISMATCH")
    try:
        inspect_image(data, limits)
    except ImageError as error:
        raise bad_picture(index, error) from error


def _check_hint(hint: inference_pb2.ModelHint) -> None:
    _check_length("model.name", hint.name, MAX_MODEL_NAME_BYTES)
    _check_length("model.version", hint.version, MAX_MODEL_NAME_BYTES)


def _check_length(path: str, text: str, most: int) -> None:
    size = len(text.encode())
    if size > most:
        raise invalid(path, f"must be at most {most} bytes, is {size} bytes")


def _parameters(given: inference_pb2.InferParameters) -> Parameters:
    return Parameters(
        confidence=_optional_share(given, "confidence_threshold"),
        iou=_optional_share(given, "iou_threshold"),
        max_detections=_optional_count(given, "max_detections", MAX_DETECTIONS),
        top_k=_optional_count(given, "top_k", MAX_TOP_K),
    )


def _optional_share(given: inference_pb2.InferParameters, name: str) -> float | None:
    value: float | None = getattr(given, name) if name in _present(given) else None
    if value is not None and not 0 <= value <= 1:  # NaN fails this, too
        raise invalid(f"parameters.{name}", f"must be in [0, 1], is {value:g}")
    return value


def _optional_count(given: inference_pb2.InferParameters, name: str, most: int) -> int | None:
    value: int | None = getattr(given, name) if name in _present(given) else None
    if value is not None and not 1 <= value <= most:
        raise invalid(f"parameters.{name}", f"must be 1 to {most}, is {value}")
    return value


def _present(given: inference_pb2.InferParameters) -> set[str]:
    return {descriptor.name for descriptor, _ in given.ListFields()}


def _no_references(index: int) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.UNIMPLEMENTED,
        "UPLOAD_NOT_IMPLEMENTED",
        f"images[{index}].reference is not served yet: send the picture itself in data",
    )
