"""Validation of `ModelInferRequest`. Pure.

A model has one input, a tensor `[N, 3, height, width]`. A request contains this tensor, or N
encoded images, `BYTES [N]`, which the service decodes and preprocesses as those of `Infer`.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.models.engine import Model
from inference_service.open_inference.tensors import (
    BYTES,
    datatype,
    from_raw,
    pack_fp32,
    split_bytes,
)
from inference_service.validate import RequestLimits
from servicekit.contract_bounds import MAX_MODEL_NAME_BYTES
from servicekit.errors import SightlineError, invalid
from vision import ImageError, ImageLimits, OpenedImage, open_image

IMAGE_INPUT = "image"
"""Alternative name of an input of encoded images."""
_TYPED = {"FP32": "fp32_contents", BYTES: "bytes_contents"}
_MICROSECONDS = re.compile("[0-9]{1,18}")
_MAX_SHOWN = 64  # characters, or axes
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One encoded image that passed every check that precedes decoding."""

    field: str
    """Path of its field in the request."""
    opened: OpenedImage
    """The opened image, which can be decoded once."""


@dataclass(frozen=True, slots=True)
class CheckedInfer:
    """A `ModelInfer` request that passed validation."""

    inputs: NDArray[Any] | tuple[EncodedImage, ...]
    """The input `[N, 3, height, width]`, or the images to convert to it."""
    outputs: tuple[int, ...]
    """Indices of the requested outputs of the model, in the order of the response."""
    timeout: float
    """Timeout of the caller from the arrival of the call, s; infinite: none."""


def read(request: oip.ModelInferRequest, model: Model, limits: RequestLimits) -> CheckedInfer:
    """Check a request for a model.

    Raises:
        SightlineError: INVALID_ARGUMENT with the invalid field.
    """
    if len(request.inputs) != 1:
        raise invalid("inputs", f"must be 1 tensor, got {len(request.inputs)}")
    tensor = request.inputs[0]
    if _SHARED_MEMORY in tensor.parameters:
        raise _no_shared_memory("inputs[0]")
    if "sequence_id" in request.parameters:
        raise invalid("parameters.sequence_id", "must not be given: models have no state")
    outputs = _outputs(request.outputs, model)
    timeout = _timeout(request.parameters)
    raw = _raw(request, tensor)
    if tensor.datatype == BYTES:
        return CheckedInfer(_images(tensor, raw, model, limits), outputs, timeout)
    return CheckedInfer(_array(tensor, raw, model, limits), outputs, timeout)


def fingerprint(request: oip.ModelInferRequest) -> bytes:
    """Return the fingerprint of a request: SHA-256 of everything except the parameters.

    The parameters contain the timeout, which changes from one attempt to the next.
    """
    bare = oip.ModelInferRequest()
    bare.CopyFrom(request)
    bare.ClearField("parameters")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()


def check_model(prefix: str, name: str, version: str) -> None:
    """Check the model name and version of a request, without looking for the model.

    Args:
        prefix: prefix of the request's field names, e.g. `model_`.
        name: name of the model.
        version: version of the model; empty: its default version.

    Raises:
        SightlineError: INVALID_ARGUMENT: a missing or overlong name.
    """
    if not name:
        raise invalid(f"{prefix}name", "must be given")
    for field, text in (("name", name), ("version", version)):
        if len(text) > MAX_MODEL_NAME_BYTES:
            rule = f"must be at most {MAX_MODEL_NAME_BYTES} characters, got {len(text)}"
            raise invalid(f"{prefix}{field}", rule)


def bad_image(field: str, error: ImageError) -> SightlineError:
    """Return the error for an image with invalid content."""
    return invalid(field, f"is refused: {error.message}", reason=error.reason)


def _no_shared_memory(tensor: str) -> SightlineError:
    rule = "must not be given: tensors are sent in the request and in the response"
    return invalid(f"{tensor}.parameters.{_SHARED_MEMORY}", rule)


def _timeout(parameters: Mapping[str, oip.InferParameter]) -> float:
    """Return the timeout in seconds; as in Triton, 0 means none."""
    if "timeout" not in parameters:
        return math.inf
    parameter = parameters["timeout"]
    choice = parameter.WhichOneof("parameter_choice")
    text = str(getattr(parameter, choice)) if choice else ""
    if not _MICROSECONDS.fullmatch(text):
        raise invalid(
            "parameters.timeout", f"must be microseconds, 0 (none) to 10^18 - 1, got {_shown(text)}"
        )
    return int(text) / 1e6 or math.inf


def _outputs(
    outputs: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor], model: Model
) -> tuple[int, ...]:
    names = [output.name for output in model.network.session.outputs]
    requested: list[int] = []
    for index, output in enumerate(outputs):
        field = f"outputs[{index}]"
        if output.name not in names:
            rule = f"must be an output of the model, {', '.join(names)}, got {_shown(output.name)}"
            raise invalid(f"{field}.name", rule)
        if names.index(output.name) in requested:
            raise invalid(f"{field}.name", f"must be requested once, got {output.name} twice")
        if _SHARED_MEMORY in output.parameters:
            raise _no_shared_memory(field)
        if "classification" in output.parameters:
            raise invalid(
                f"{field}.parameters.classification",
                "must not be given: outputs are those of the model; use Infer for classes",
            )
        requested.append(names.index(output.name))
    return tuple(requested or range(len(names)))


def _raw(
    request: oip.ModelInferRequest, tensor: oip.ModelInferRequest.InferInputTensor
) -> bytes | None:
    """Return the raw bytes of the input; None if it has typed contents."""
    raw, typed = request.raw_input_contents, tensor.contents.ListFields()
    if raw and typed:
        raise invalid("raw_input_contents", "must be empty if inputs[0].contents is given")
    if not raw and not typed:
        raise invalid("inputs[0].contents", "must be given if raw_input_contents is empty")
    if len(raw) > 1:
        raise invalid("raw_input_contents", f"must be 1, as many as inputs, got {len(raw)}")
    return raw[0] if raw else None


def _array(
    tensor: oip.ModelInferRequest.InferInputTensor,
    raw: bytes | None,
    model: Model,
    limits: RequestLimits,
) -> NDArray[Any]:
    (own,) = model.network.session.inputs
    _check_name(tensor, (own.name,))
    if tensor.datatype != datatype(own.dtype):
        rule = f"must be {datatype(own.dtype)}, or {BYTES} for encoded images"
        raise invalid("inputs[0].datatype", f"{rule}, got {_shown(tensor.datatype)}")
    row = [3, *model.network.input_size]
    if len(tensor.shape) != 1 + len(row) or list(tensor.shape[1:]) != row:
        shape = ", ".join(map(str, row))
        raise invalid("inputs[0].shape", f"must be [N, {shape}], got {_shown_shape(tensor)}")
    _check_rows(tensor.shape[0], limits)
    if raw is not None:
        return from_raw(raw, tensor.shape, own.dtype, "raw_input_contents[0]")
    _check_typed(tensor, math.prod(tensor.shape))
    packed = pack_fp32(tensor.contents.fp32_contents)
    return from_raw(packed, tensor.shape, own.dtype, "inputs[0].contents.fp32_contents")


def _images(
    tensor: oip.ModelInferRequest.InferInputTensor,
    raw: bytes | None,
    model: Model,
    limits: RequestLimits,
) -> tuple[EncodedImage, ...]:
    _check_name(tensor, (model.network.session.inputs[0].name, IMAGE_INPUT))
    if not 1 <= len(tensor.shape) <= 2 or list(tensor.shape[1:]) not in ([], [1]):
        rule = f"must be [N] or [N, 1] for {BYTES}, got {_shown_shape(tensor)}"
        raise invalid("inputs[0].shape", rule)
    rows = tensor.shape[0]
    _check_rows(rows, limits)
    field = "raw_input_contents[0]"
    if raw is not None:
        images: Sequence[bytes] = split_bytes(raw, rows, field)
    else:
        _check_typed(tensor, rows)
        field = "inputs[0].contents.bytes_contents"
        images = tensor.contents.bytes_contents
    return tuple(
        _opened(f"{field}[{index}]", data, limits.image) for index, data in enumerate(images)
    )


def _opened(field: str, data: bytes, limits: ImageLimits) -> EncodedImage:
    try:
        return EncodedImage(field, open_image(data, limits))
    except ImageError as error:
        raise bad_image(field, error) from error


def _check_name(tensor: oip.ModelInferRequest.InferInputTensor, names: Sequence[str]) -> None:
    if tensor.name not in names:
        raise invalid("inputs[0].name", f"must be {' or '.join(names)}, got {_shown(tensor.name)}")


def _shown(text: str) -> str:
    """Return a caller's text for an error message, truncated."""
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


def _shown_shape(tensor: oip.ModelInferRequest.InferInputTensor) -> str:
    shape = tensor.shape
    return str(list(shape)) if len(shape) <= _MAX_SHOWN else f"{len(shape)} axes"


def _check_rows(rows: int, limits: RequestLimits) -> None:
    if not 1 <= rows <= limits.max_images:
        raise invalid("inputs[0].shape", f"must have 1 to {limits.max_images} rows, got {rows}")


def _check_typed(tensor: oip.ModelInferRequest.InferInputTensor, count: int) -> None:
    own = _TYPED.get(tensor.datatype)
    if own is None:
        rule = f"must be empty for {tensor.datatype}: send it in raw_input_contents"
        raise invalid("inputs[0].contents", rule)
    for field, _ in tensor.contents.ListFields():
        if field.name != own:
            rule = f"must be empty, since the datatype is {tensor.datatype}"
            raise invalid(f"inputs[0].contents.{field.name}", rule)
    size = len(getattr(tensor.contents, own))
    if size != count:
        rule = f"must be {count} elements for {list(tensor.shape)}, got {size}"
        raise invalid(f"inputs[0].contents.{own}", rule)
