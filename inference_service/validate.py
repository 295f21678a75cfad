"""Validation of requests: sizes, image type by content, dimensions before decoding, SHA-256.

Pure: no clock, socket or file; references are resolved by a function. A bad image is refused on its
own. A request without a good image, or with a bad field outside its images, is refused as a whole.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from inference_service.domain import (
    CheckedImage,
    CheckedRequest,
    ImageContent,
    Parameters,
    RefusedImage,
)
from inference_service.uploads.errors import ReferenceLostError, reference_unknown
from servicekit.contract_bounds import (
    MAX_CONTEXT,
    MAX_CONTEXT_KEY_BYTES,
    MAX_CONTEXT_VALUE_BYTES,
    MAX_DETECTIONS,
    MAX_IMAGE_ID_BYTES,
    MAX_MODEL_NAME_BYTES,
    MAX_POLYGON_TOLERANCE,
)
from servicekit.errors import Category, FieldViolation, SightlineError, invalid
from vision import ImageError, ImageLimits, MaskFormat, OpenedImage, open_image

MAX_TOP_K = 1000
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""Default limit on a response: the largest message that a gRPC client accepts by default."""
MAX_CLIENT_BYTES = 128
_SHA256_BYTES = 32
_MASK_FORMATS: Mapping[int, MaskFormat | None] = {
    inference_pb2.MASK_FORMAT_UNSPECIFIED: None,
    inference_pb2.MASK_FORMAT_OFF: "off",
    inference_pb2.MASK_FORMAT_POLYGON: "polygon",
    inference_pb2.MASK_FORMAT_RLE: "rle",
}

Resolve = Callable[[str], ImageContent]
"""Function that returns the image of a reference. It raises SightlineError: with category
VALIDATION to refuse the image, with another category to refuse the request."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits on one request."""

    max_images: int = 16
    image: ImageLimits = field(default_factory=ImageLimits)
    max_response_bytes: int = MAX_RESPONSE_BYTES


def resolve_none(_reference: str) -> ImageContent:
    """Raise `REFERENCE_UNKNOWN` for every reference: the `Resolve` of a server without uploads."""
    raise reference_unknown()


def check(
    request: inference_service_pb2.InferRequest,
    limits: RequestLimits,
    resolve: Resolve = resolve_none,
) -> CheckedRequest:
    """Check a request.

    Args:
        request: the request as received.
        limits: limits on the request.
        resolve: returns the image of a reference; may block.

    Raises:
        SightlineError: INVALID_ARGUMENT with the invalid fields; or the errors of `resolve`, if
            every image failed and none of them was uploaded before.
    """
    count = len(request.images)
    if not 1 <= count <= limits.max_images:
        raise invalid("images", f"must be 1 to {limits.max_images} images, got {count}")
    parameters = _parameters(request.parameters)
    _check_hint(request.model)
    _check_context(request.context)
    for name in ("name", "version", "platform"):
        _check_length(f"client.{name}", getattr(request.client, name), MAX_CLIENT_BYTES)
    images = tuple(
        _check_entry(image, index, limits.image, resolve)
        for index, image in enumerate(request.images)
    )
    if not any(isinstance(image, RefusedImage) and image.lost for image in images):
        refuse_if_all_bad(
            [image.error if isinstance(image, RefusedImage) else None for image in images]
        )
    return CheckedRequest(request.model.name, request.model.version, parameters, images)


def refuse_if_all_bad(errors: Sequence[SightlineError | None]) -> None:
    """Raise one error if all images of a request are bad.

    Args:
        errors: the error of each image; None: the image is good.

    Raises:
        SightlineError: with the violations of all images; code and reason are those of the images
            if they agree, else INVALID_ARGUMENT, `IMAGES_INVALID`.
    """
    bad = [error for error in errors if error is not None]
    if len(bad) < len(errors):
        return
    kinds = {(error.code, error.reason) for error in bad}
    mixed = (grpc.StatusCode.INVALID_ARGUMENT, "IMAGES_INVALID")
    code, reason = kinds.pop() if len(kinds) == 1 else mixed
    violations: list[FieldViolation] = [v for error in bad for v in error.violations]
    more = f" (and {len(bad) - 1} more bad images)" if len(bad) > 1 else ""
    raise SightlineError(code, reason, bad[0].message + more, violations=violations)


def bad_image(index: int, error: ImageError, field: str = "data") -> SightlineError:
    """Return the error for an image with invalid content.

    Args:
        index: position in the request, from 0.
        error: the reason.
        field: field that it came from, `data` or `reference`.
    """
    return invalid(f"images[{index}].{field}", f"is refused: {error.message}", reason=error.reason)


def result_too_large(index: int, limit: int) -> SightlineError:
    """Return the error for an image whose result does not fit into the response.

    Args:
        index: position in the request, from 0.
        limit: on the response, bytes.
    """
    return invalid(
        f"images[{index}]",
        f"has a result that does not fit into a response of {limit} bytes: ask for fewer"
        " detections, a larger polygon_tolerance, polygons instead of run lengths, or with fewer"
        " images",
        reason="RESULT_TOO_LARGE",
    )


def _check_entry(
    image: inference_pb2.Image, index: int, limits: ImageLimits, resolve: Resolve
) -> CheckedImage | RefusedImage:
    image_id = image.image_id
    if image.HasField("reference"):
        field, reference = "reference", image.reference
        try:
            content = resolve(reference)
        except SightlineError as error:
            if error.category is not Category.VALIDATION:
                raise
            digest = _digest_of(reference, error)
            lost = isinstance(error, ReferenceLostError)
            return RefusedImage(
                index, image_id, digest, _prefix_fields(f"images[{index}]", error), lost
            )
    else:
        data = image.data  # each access copies it
        field, content = "data", ImageContent(data, hashlib.sha256(data).digest())
    try:
        opened = _check_image(image, index, content, limits, field)
    except SightlineError as error:
        return RefusedImage(index, image_id, content.sha256, error)
    return CheckedImage(index, image_id, opened, content.sha256, field)


def _digest_of(reference: str, error: SightlineError) -> bytes:
    if isinstance(error, ReferenceLostError):
        return error.sha256
    return hashlib.sha256(reference.encode()).digest()


def _prefix_fields(path: str, error: SightlineError) -> SightlineError:
    """Return the error with `path` in front of its fields."""
    return SightlineError(
        error.code,
        error.reason,
        f"{path}.{error.message}",
        violations=[FieldViolation(f"{path}.{v.field}", v.description) for v in error.violations],
    )


def _check_image(
    image: inference_pb2.Image, index: int, content: ImageContent, limits: ImageLimits, field: str
) -> OpenedImage:
    digest = content.sha256
    path = f"images[{index}]"
    _check_length(f"{path}.image_id", image.image_id, MAX_IMAGE_ID_BYTES)
    if len(image.sha256) not in {0, _SHA256_BYTES}:
        raise invalid(f"{path}.sha256", f"must be 32 bytes or empty, got {len(image.sha256)} bytes")
    if image.sha256 and image.sha256 != digest:
        rule = f"must be the SHA-256 of the data, which is {digest.hex()}"
        raise invalid(f"{path}.sha256", rule, reason="IMAGE_HASH_MISMATCH")
    try:
        return open_image(content.data, limits)
    except ImageError as error:
        raise bad_image(index, error, field) from error


def _check_hint(hint: inference_pb2.ModelHint) -> None:
    _check_length("model.name", hint.name, MAX_MODEL_NAME_BYTES)
    _check_length("model.version", hint.version, MAX_MODEL_NAME_BYTES)


def _check_context(context: Mapping[str, str]) -> None:
    if len(context) > MAX_CONTEXT:
        raise invalid("context", f"must have at most {MAX_CONTEXT} labels, got {len(context)}")
    for key, value in context.items():
        size = len(key.encode())
        if not 1 <= size <= MAX_CONTEXT_KEY_BYTES:
            rule = f"must have keys of 1 to {MAX_CONTEXT_KEY_BYTES} bytes"
            raise invalid("context", f"{rule}, got one of {size} bytes")
        _check_length(f"context[{key!r}]", value, MAX_CONTEXT_VALUE_BYTES)


def _check_length(path: str, text: str, limit: int) -> None:
    size = len(text.encode())
    if size > limit:
        raise invalid(path, f"must be at most {limit} bytes, got {size} bytes")


def _parameters(message: inference_pb2.InferParameters) -> Parameters:
    return Parameters(
        confidence=_optional_share(message, "confidence_threshold"),
        iou=_optional_share(message, "iou_threshold"),
        max_detections=_optional_count(message, "max_detections", MAX_DETECTIONS),
        top_k=_optional_count(message, "top_k", MAX_TOP_K),
        mask_format=_mask_format(message),
        polygon_tolerance=_polygon_tolerance(message),
    )


def _mask_format(message: inference_pb2.InferParameters) -> MaskFormat | None:
    if message.mask_format not in _MASK_FORMATS:
        allowed = "MASK_FORMAT_OFF, MASK_FORMAT_POLYGON or MASK_FORMAT_RLE"
        raise invalid("parameters.mask_format", f"must be {allowed}, got {message.mask_format}")
    return _MASK_FORMATS[message.mask_format]


def _polygon_tolerance(message: inference_pb2.InferParameters) -> float | None:
    name = "polygon_tolerance"
    value = message.polygon_tolerance if name in _present(message) else None
    if value is not None and not 0 <= value <= MAX_POLYGON_TOLERANCE:  # NaN is refused, too
        rule = f"must be 0 to {MAX_POLYGON_TOLERANCE} pixels"
        raise invalid(f"parameters.{name}", f"{rule}, got {value:g}")
    return value


def _optional_share(message: inference_pb2.InferParameters, name: str) -> float | None:
    value: float | None = getattr(message, name) if name in _present(message) else None
    if value is not None and not 0 <= value <= 1:  # NaN is refused, too
        raise invalid(f"parameters.{name}", f"must be in [0, 1], got {value:g}")
    return value


def _optional_count(message: inference_pb2.InferParameters, name: str, limit: int) -> int | None:
    value: int | None = getattr(message, name) if name in _present(message) else None
    if value is not None and not 1 <= value <= limit:
        raise invalid(f"parameters.{name}", f"must be 1 to {limit}, got {value}")
    return value


def _present(message: inference_pb2.InferParameters) -> set[str]:
    return {descriptor.name for descriptor, _ in message.ListFields()}
