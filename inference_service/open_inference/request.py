"""`ModelInferRequest` in, checked input out. Pure.

A model has one input, a tensor `[N, 3, height, width]`. It may be given as such, or as N encoded
images, `BYTES [N]`, which the service decodes and prepares as it does those of `Infer`.
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
from inference_service.validate import MAX_MODEL_NAME_BYTES, RequestLimits
from servicekit.errors import SightlineError, invalid
from vision import ImageError, ImageLimits, OpenedImage, open_image

IMAGE_INPUT = "image"
"""Name that an input of encoded images may have beside the model's own."""
_TYPED = {"FP32": "fp32_contents", BYTES: "bytes_contents"}
_MICROSECONDS = re.compile("[0-9]{1,18}")
_MOST_SHOWN = 64  # characters, or axes
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One encoded image that passed every check short of decoding it."""

    field: str
    """Path of the request's field that holds it."""
    opened: OpenedImage
    """To be decoded once."""


@dataclass(frozen=True, slots=True)
class CheckedInfer:
    """A checked request."""

    inputs: NDArray[Any] | tuple[EncodedImage, ...]
    """The input `[N, 3, height, width]`, or the images to make it of."""
    outputs: tuple[int, ...]
    """Positions of the outputs that are wanted among the model's, in the order of the answer."""
    timeout: float
    """Seconds from the call's arrival that the caller leaves; infinite: it does not say."""


def read(request: oip.ModelInferRequest, model: Model, limits: RequestLimits) -> CheckedInfer:
    """Check a request for a model.

    Raises:
        SightlineError: INVALID_ARGUMENT with the field that breaks a rule.
    """
    if len(request.inputs) != 1:
        raise invalid("inputs", f"must be 1 tensor, are {len(request.inputs)}")
    tensor = request.inputs[0]
    if _SHARED_MEMORY in tensor.parameters:
        raise _no_shared_memory("inputs[0]")
    if "sequence_id" in request.parameters:
        raise invalid("parameters.sequence_id", "must not be given: models keep no state")
    outputs = _outputs(request.outputs, model)
    timeout = _timeout(request.parameters)
    raw = _raw(request, tensor)
    if tensor.datatype == BYTES:
        return CheckedInfer(_images(tensor, raw, model, limits), outputs, timeout)
    return CheckedInfer(_array(tensor, raw, model, limits), outputs, timeout)


def fingerprint(request: oip.ModelInferRequest) -> bytes:
    """Return what an idempotency key is bound to: SHA-256 of all but the parameters.

    Those say how long the caller waits, which changes from one attempt to the next.
    """
    bare = oip.ModelInferRequest()
    bare.CopyFrom(request)
    bare.ClearField("parameters")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()


def check_model(prefix: str, name: str, version: str) -> None:
    """Check what a request says about its model, short of looking for it.

    Args:
        prefix: of the names of the request's fields, such as `model_`.
        name: of the model.
        version: of the model; empty: its default version.

    Raises:
        SightlineError: INVALID_ARGUMENT: no name, or one that no model can have.
    """
    if not name:
        raise invalid(f"{prefix}name", "must be given")
    for field, text in (("name", name), ("version", version)):
        if len(text) > MAX_MODEL_NAME_BYTES:
            rule = f"must be at most {MAX_MODEL_NAME_BYTES} characters, is {len(text)}"
            raise invalid(f"{prefix}{field}", rule)


def bad_image(field: str, error: ImageError) -> SightlineError:
    """Return the error for an image whose content is refused."""
    return invalid(field, f"is refused: {error.message}", reason=error.reason)


def _no_shared_memory(tensor: str) -> SightlineError:
    rule = "must not be given: tensors come in the request and go in the answer"
    return invalid(f"{tensor}.parameters.{_SHARED_MEMORY}", rule)


def _timeout(parameters: Mapping[str, oip.InferParameter]) -> float:
    """Return seconds; 0, as everywhere in Triton, say nothing."""
    if "timeout" not in parameters:
        return math.inf
    parameter = parameters["timeout"]
    choice = parameter.WhichOneof("parameter_choice")
    text = str(getattr(parameter, choice)) if choice else ""
    if not _MICROSECONDS.fullmatch(text):
        raise invalid(
            "parameters.timeout", f"must be microseconds, 0 (none) to 10^18 - 1, is {_shown(text)}"
        )
    return int(text) / 1e6 or math.inf


def _outputs(
    checked: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor], model: Model
) -> tuple[int, ...]:
    names = [output.name for output in model.network.session.outputs]
    wanted: list[int] = []
    for index, output in enumerate(checked):
        field = f"outputs[{index}]"
        if output.name not in names:
            rule = f"must be an output of the model, {', '.join(names)}, is {_shown(output.name)}"
            raise invalid(f"{field}.name", rule)
        if names.index(output.name) in wanted:
            raise invalid(f"{field}.name", f"must be asked for once, {output.name}")
        if _SHARED_MEMORY in output.parameters:
            raise _no_shared_memory(field)
        if "classification" in output.parameters:
            raise invalid(
                f"{field}.parameters.classification",
                "must not be given: outputs are the model's own; Infer answers with classes",
            )
        wanted.append(names.index(output.name))
    return tuple(wanted or range(len(names)))


def _raw(
    request: oip.ModelInferRequest, tensor: oip.ModelInferRequest.InferInputTensor
) -> bytes | None:
    """Return the only input's raw bytes; None: it has typed contents."""
    raw, typed = request.raw_input_contents, tensor.contents.ListFields()
    if raw and typed:
        raise invalid("raw_input_contents", "must be empty where inputs[0].contents is given")
    if not raw and not typed:
        raise invalid("inputs[0].contents", "must be given, or else raw_input_contents")
    if len(raw) > 1:
        raise invalid("raw_input_contents", f"must be 1, as many as inputs, are {len(raw)}")
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
        raise invalid("inputs[0].datatype", f"{rule}, is {_shown(tensor.datatype)}")
    row = [3, *model.network.input_size]
    if len(tensor.shape) != 1 + len(row) or list(tensor.shape[1:]) != row:
        shape = ", ".join(map(str, row))
        raise invalid("inputs[0].shape", f"must be [N, {shape}], is {_shown_shape(tensor)}")
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
        rule = f"must be [N] or [N, 1] for {BYTES}, is {_shown_shape(tensor)}"
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
        raise invalid("inputs[0].name", f"must be {' or '.join(names)}, is {_shown(tensor.name)}")


def _shown(text: str) -> str:
    """Return a caller's text as a message can have it: however long it is, it costs no time."""
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


def _shown_shape(tensor: oip.ModelInferRequest.InferInputTensor) -> str:
    shape = tensor.shape
    return str(list(shape)) if len(shape) <= _MOST_SHOWN else f"of {len(shape)} axes"


def _check_rows(rows: int, limits: RequestLimits) -> None:
    if not 1 <= rows <= limits.max_images:
        raise invalid("inputs[0].shape", f"must have 1 to {limits.max_images} rows, has {rows}")


def _check_typed(tensor: oip.ModelInferRequest.InferInputTensor, count: int) -> None:
    own = _TYPED.get(tensor.datatype)
    if own is None:
        rule = f"must be empty for {tensor.datatype}, which comes in raw_input_contents"
        raise invalid("inputs[0].contents", rule)
    for field, _ in tensor.contents.ListFields():
        if field.name != own:
            rule = f"must be empty, since the datatype is {tensor.datatype}"
            raise invalid(f"inputs[0].contents.{field.name}", rule)
    size = len(getattr(tensor.contents, own))
    if size != count:
        rule = f"must be {count} elements for {list(tensor.shape)}, are {size}"
        raise invalid(f"inputs[0].contents.{own}", rule)
