"""Requests in, checked questions out: size, type by content, dimensions before decoding, SHA-256.

Pure: no clock, socket or file; what a reference stands for comes from a function. One bad image
is refused alone; a request with no good image, or with a bad field outside its images, is
refused whole.
"""

import hashlib
from collections.abc import Callable, Sequence
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
from servicekit.errors import Category, FieldViolation, SightlineError, invalid
from vision import ImageError, ImageLimits, OpenedImage, open_image

MAX_IMAGE_ID_BYTES = 512
MAX_MODEL_NAME_BYTES = 256
MAX_DETECTIONS = 10_000
MAX_TOP_K = 1000
_SHA256_BYTES = 32

Resolve = Callable[[str], ImageContent]
"""Returns the image of a reference; raises SightlineError: of category VALIDATION if there is
none, which refuses the image; of another, which refuses the request."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may ask for."""

    max_images: int = 16
    image: ImageLimits = field(default_factory=ImageLimits)


def resolve_none(_reference: str) -> ImageContent:
    """The `Resolve` of a server without uploads. Raises SightlineError `REFERENCE_UNKNOWN`."""
    raise reference_unknown()


def check(
    request: inference_service_pb2.InferRequest,
    limits: RequestLimits,
    resolve: Resolve = resolve_none,
) -> CheckedRequest:
    """Check a request.

    Args:
        request: as it came.
        limits: what it may ask for.
        resolve: gives the images that are there by reference; may block.

    Raises:
        SightlineError: INVALID_ARGUMENT with the fields that break a rule; what `resolve` raises,
            if it is that for every image and none of them was there before.
    """
    count = len(request.images)
    if not 1 <= count <= limits.max_images:
        raise invalid("images", f"must be 1 to {limits.max_images} images, are {count}")
    parameters = _parameters(request.parameters)
    _check_hint(request.model)
    images = tuple(
        _checked(image, index, limits.image, resolve) for index, image in enumerate(request.images)
    )
    if not any(isinstance(image, RefusedImage) and image.lost for image in images):
        refuse_if_all_bad([p.error if isinstance(p, RefusedImage) else None for p in images])
    return CheckedRequest(request.model.name, request.model.version, parameters, images)


def refuse_if_all_bad(errors: Sequence[SightlineError | None]) -> None:
    """Raise one error for a request whose images are all bad.

    Args:
        errors: what is wrong with each image; None: nothing.

    Raises:
        SightlineError: with every image's violations; code and reason are the images' own if
            they share them, else INVALID_ARGUMENT, `IMAGES_INVALID`.
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
    """Return the error for an image whose content is refused.

    Args:
        index: position in the request, from 0.
        error: what is wrong with it.
        field: where it came from, `data` or `reference`.
    """
    return invalid(f"images[{index}].{field}", f"is refused: {error.message}", reason=error.reason)


def _checked(
    image: inference_pb2.Image, index: int, limits: ImageLimits, resolve: Resolve
) -> CheckedImage | RefusedImage:
    name = image.image_id
    if image.HasField("reference"):
        field, reference = "reference", image.reference
        try:
            content = resolve(reference)
        except SightlineError as error:
            if error.category is not Category.VALIDATION:
                raise
            digest = _digest_of(reference, error)
            lost = isinstance(error, ReferenceLostError)
            return RefusedImage(index, name, digest, _within(f"images[{index}]", error), lost)
    else:
        data = image.data  # each look at it is a copy
        field, content = "data", ImageContent(data, hashlib.sha256(data).digest())
    try:
        opened = _check_image(image, index, content, limits, field)
    except SightlineError as error:
        return RefusedImage(index, name, content.sha256, error)
    return CheckedImage(index, name, opened, content.sha256, field)


def _digest_of(reference: str, error: SightlineError) -> bytes:
    if isinstance(error, ReferenceLostError):
        return error.sha256
    return hashlib.sha256(reference.encode()).digest()


def _within(path: str, error: SightlineError) -> SightlineError:
    """Return the error with its fields placed in the request."""
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
        raise invalid(f"{path}.sha256", f"must be 32 bytes or empty, is {len(image.sha256)} bytes")
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
