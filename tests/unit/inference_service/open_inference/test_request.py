"""Requests that are read, and everything that can be wrong with one."""

import math
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.models.engine import Model
from inference_service.open_inference.request import (
    CheckedInfer,
    check_model,
    fingerprint,
    read,
)
from inference_service.validate import RequestLimits
from servicekit.errors import SightlineError
from tests.unit.inference_service.open_inference.networks import SIDE, loaded, network, rows
from tests.unit.inference_service.tiny_onnx import bomb, picture
from vision import ImageLimits, decode_image

LIMITS = RequestLimits(max_images=4, image=ImageLimits(max_bytes=100_000, max_pixels=1_000_000))
RED, BLUE = picture(), picture((0, 0, 255), kind="JPEG")
Input = oip.ModelInferRequest.InferInputTensor
Output = oip.ModelInferRequest.InferRequestedOutputTensor
Contents = oip.InferTensorContents
Parameter = oip.InferParameter
Change = Callable[[oip.ModelInferRequest], Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return loaded(network(tmp_path_factory.mktemp("single") / "two" / "1" / "model.onnx"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("half") / "two" / "1" / "model.onnx"
    return loaded(network(path, half=True))


def tensor(count: int = 1) -> oip.ModelInferRequest:
    """Return a good request for rows as raw FP32."""
    shape = [count, 3, SIDE, SIDE]
    return oip.ModelInferRequest(
        model_name="two",
        inputs=[Input(name="images", datatype="FP32", shape=shape)],
        raw_input_contents=[rows(count).tobytes()],
    )


def typed(count: int = 1) -> oip.ModelInferRequest:
    """Return the same as numbers one by one."""
    request = tensor(count)
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(rows(count).ravel())
    return request


def encoded(*pictures: bytes, name: str = "image") -> oip.ModelInferRequest:
    """Return a good request for pictures, one by one."""
    contents = Contents(bytes_contents=pictures)
    inputs = Input(name=name, datatype="BYTES", shape=[len(pictures)], contents=contents)
    return oip.ModelInferRequest(model_name="two", inputs=[inputs])


def raw_encoded(*pictures: bytes) -> oip.ModelInferRequest:
    """Return the same as one string of bytes."""
    request = encoded(*pictures)
    request.inputs[0].ClearField("contents")
    raw = b"".join(len(each).to_bytes(4, "little") + each for each in pictures)
    request.raw_input_contents.append(raw)
    return request


def array(checked: CheckedInfer) -> Any:
    assert isinstance(checked.inputs, np.ndarray)
    return checked.inputs


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("make", [tensor, typed])
def test_a_tensor(model: Model, make: Callable[[int], oip.ModelInferRequest], count: int) -> None:
    checked = read(make(count), model, LIMITS)
    assert array(checked).dtype == np.float32
    assert np.array_equal(array(checked), rows(count))
    assert checked.outputs == (0, 1)
    assert checked.timeout == math.inf


def test_a_tensor_of_half_precision(half: Model) -> None:
    request = tensor()
    request.inputs[0].datatype = "FP16"
    request.raw_input_contents[0] = rows(1).astype("<f2").tobytes()
    assert np.array_equal(array(read(request, half, LIMITS)), rows(1).astype("<f2"))


def test_numbers_that_are_none_are_the_callers_business(model: Model) -> None:
    request = typed()
    request.inputs[0].contents.fp32_contents[0] = math.nan
    assert np.isnan(array(read(request, model, LIMITS))[0, 0, 0, 0])


@pytest.mark.parametrize("name", ["image", "images"])
@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_images(model: Model, name: str, shape: list[int]) -> None:
    for make, field in (
        (encoded, "inputs[0].contents.bytes_contents"),
        (raw_encoded, "raw_input_contents[0]"),
    ):
        request = make(RED, BLUE)
        request.inputs[0].name = name
        request.inputs[0].shape[:] = shape
        inputs = read(request, model, LIMITS).inputs
        assert isinstance(inputs, tuple)
        assert [each.field for each in inputs] == [f"{field}[0]", f"{field}[1]"]
        for each, data in zip(inputs, (RED, BLUE), strict=True):
            assert np.array_equal(each.opened.decode(), decode_image(data))


def test_outputs_come_in_the_order_in_which_they_are_asked_for(model: Model) -> None:
    request = tensor()
    request.outputs.append(Output(name="best"))
    assert read(request, model, LIMITS).outputs == (1,)
    request.outputs.append(Output(name="scores"))
    assert read(request, model, LIMITS).outputs == (1, 0)


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        (Parameter(int64_param=1_500_000), 1.5),
        (Parameter(uint64_param=1), 1e-6),
        (Parameter(string_param="2000000"), 2.0),
        (Parameter(int64_param=0), math.inf),
    ],
)
def test_a_timeout(model: Model, timeout: oip.InferParameter, seconds: float) -> None:
    request = tensor()
    request.parameters["timeout"].CopyFrom(timeout)
    assert read(request, model, LIMITS).timeout == seconds


def test_what_changes_no_answer_is_without_effect(model: Model) -> None:
    request = tensor()
    request.parameters["priority"].uint64_param = 1
    request.parameters["anything"].bool_param = True
    request.inputs[0].parameters["binary_data_size"].int64_param = 1
    request.outputs.append(Output(name="best"))
    request.outputs[0].parameters["binary_data"].bool_param = True
    assert read(request, model, LIMITS).outputs == (1,)


def shape(*axes: int) -> Change:
    def change(request: oip.ModelInferRequest) -> None:
        request.inputs[0].shape[:] = axes

    return change


@pytest.mark.parametrize(
    ("change", "field", "rule"),
    [
        (lambda r: r.ClearField("inputs"), "inputs", "1 tensor, got 0"),
        (lambda r: r.inputs.add(), "inputs", "1 tensor, got 2"),
        (lambda r: setattr(r.inputs[0], "name", "image"), "inputs[0].name", "must be images"),
        (
            lambda r: setattr(r.inputs[0], "datatype", "FP16"),
            "inputs[0].datatype",
            "FP32, or BYTES",
        ),
        (lambda r: setattr(r.inputs[0], "datatype", ""), "inputs[0].datatype", "got ''"),
        (shape(), "inputs[0].shape", r"must be \[N, 3, 16, 16\], got \[\]"),
        (shape(3, SIDE, SIDE), "inputs[0].shape", "got .3, 16, 16."),
        (shape(1, 3, SIDE, SIDE, 1), "inputs[0].shape", "N, 3"),
        (shape(1, 3, SIDE, 2 * SIDE), "inputs[0].shape", "N, 3"),
        (shape(1, SIDE, SIDE, 3), "inputs[0].shape", "N, 3"),
        (shape(0, 3, SIDE, SIDE), "inputs[0].shape", "1 to 4 rows, got 0"),
        (shape(-1, 3, SIDE, SIDE), "inputs[0].shape", "got -1"),
        (shape(5, 3, SIDE, SIDE), "inputs[0].shape", "got 5"),
        (shape(2, 3, SIDE, SIDE), "raw_input_contents[0]", "must be 6144 bytes"),
        (lambda r: r.ClearField("raw_input_contents"), "inputs[0].contents", "must be given"),
        (lambda r: r.raw_input_contents.append(b""), "raw_input_contents", "must be 1.* got 2"),
        (
            lambda r: r.inputs[0].contents.fp32_contents.append(1),
            "raw_input_contents",
            "must be empty",
        ),
        (lambda r: r.outputs.add(name="boxes"), "outputs[0].name", "scores, best, got 'boxes'"),
        (
            lambda r: r.outputs.extend([Output(name="best")] * 2),
            "outputs[1].name",
            "must be requested once",
        ),
        (
            lambda r: r.parameters["timeout"].MergeFrom(Parameter(int64_param=-1)),
            "parameters.timeout",
            "got '-1'",
        ),
        (
            lambda r: r.parameters["timeout"].MergeFrom(Parameter(string_param="1 s")),
            "parameters.timeout",
            "microseconds",
        ),
        (
            lambda r: r.parameters["timeout"].MergeFrom(Parameter(bool_param=True)),
            "parameters.timeout",
            "got 'True'",
        ),
        (
            lambda r: r.parameters["timeout"].MergeFrom(Parameter()),
            "parameters.timeout",
            "got ''",
        ),
        (
            lambda r: r.parameters["sequence_id"].MergeFrom(Parameter(int64_param=7)),
            "parameters.sequence_id",
            "have no state",
        ),
        (
            lambda r: r.inputs[0].parameters["shared_memory_region"].MergeFrom(Parameter()),
            "inputs[0].parameters.shared_memory_region",
            "in the request",
        ),
        (
            lambda r: r.outputs.add(name="best").parameters["shared_memory_region"].Clear(),
            "outputs[0].parameters.shared_memory_region",
            "in the response",
        ),
        (
            lambda r: r.outputs.add(name="best").parameters["classification"].Clear(),
            "outputs[0].parameters.classification",
            "must not be given",
        ),
    ],
)
def test_a_tensor_that_is_refused(model: Model, change: Change, field: str, rule: str) -> None:
    request = tensor()
    change(request)
    refusal(request, model, field, rule)


@pytest.mark.parametrize(
    ("change", "field", "rule"),
    [
        (shape(2, 3, SIDE, SIDE), "inputs[0].contents.fp32_contents", "must be 1536 elements"),
        (
            lambda r: r.inputs[0].contents.ClearField("fp32_contents"),
            "inputs[0].contents",
            "must be given",
        ),
        (
            lambda r: r.inputs[0].contents.fp64_contents.append(1),
            "inputs[0].contents.fp64_contents",
            "must be empty, since the datatype is FP32",
        ),
    ],
)
def test_typed_numbers_that_are_refused(
    model: Model, change: Change, field: str, rule: str
) -> None:
    request = typed()
    change(request)
    refusal(request, model, field, rule)


def test_there_are_no_typed_numbers_of_half_precision(half: Model) -> None:
    request = typed()
    request.inputs[0].datatype = "FP16"
    refusal(request, half, "inputs[0].contents", "send it in raw_input_contents")


@pytest.mark.parametrize(
    ("change", "field", "rule"),
    [
        (lambda r: setattr(r.inputs[0], "name", "x"), "inputs[0].name", "images or image, got 'x'"),
        (shape(), "inputs[0].shape", r"must be \[N\] or \[N, 1\] for BYTES"),
        (shape(1, 2), "inputs[0].shape", "for BYTES"),
        (shape(1, 1, 1), "inputs[0].shape", "for BYTES"),
        (shape(0), "inputs[0].shape", "got 0"),
        (shape(5), "inputs[0].shape", "got 5"),
        (shape(1), "inputs[0].contents.bytes_contents", "must be 1 elements for .1., got 2"),
        (
            lambda r: r.inputs[0].contents.fp32_contents.append(1),
            "inputs[0].contents.fp32_contents",
            "the datatype is BYTES",
        ),
    ],
)
def test_images_that_are_refused(model: Model, change: Change, field: str, rule: str) -> None:
    request = encoded(RED, BLUE)
    change(request)
    refusal(request, model, field, rule)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "IMAGE_EMPTY"),
        (b"<html>", "IMAGE_TYPE_UNSUPPORTED"),
        (RED + bytes(100_000), "IMAGE_TOO_LARGE"),
        (bomb(), "IMAGE_DIMENSIONS_TOO_LARGE"),
    ],
    ids=["empty", "type", "bytes", "bomb"],
)
def test_an_image_that_is_refused_undecoded(model: Model, data: bytes, reason: str) -> None:
    for make, field in (
        (encoded, "inputs[0].contents.bytes_contents[1]"),
        (raw_encoded, "raw_input_contents[0][1]"),
    ):
        error = refusal(make(RED, data), model, field, "is refused")
        assert error.reason == reason


def refusal(request: oip.ModelInferRequest, model: Model, field: str, rule: str) -> SightlineError:
    with pytest.raises(SightlineError, match=rule) as caught:
        read(request, model, LIMITS)
    assert [violation.field for violation in caught.value.violations] == [field]
    return caught.value


def test_what_is_refused_is_not_said_back_at_length(model: Model) -> None:
    request = tensor()
    request.inputs[0].datatype = "x" * 1000
    assert len(refusal(request, model, "inputs[0].datatype", "x").message) < 150
    request = tensor()
    request.inputs[0].shape[:] = [1] * 1000
    refusal(request, model, "inputs[0].shape", "got 1000 axes")


def test_names_of_models() -> None:
    check_model("model_", "m" * 256, "")
    for name, version, field in (
        ("", "", "model_name"),
        ("m" * 257, "", "model_name"),
        ("m", "v" * 257, "model_version"),
    ):
        with pytest.raises(SightlineError) as caught:
            check_model("model_", name, version)
        assert [violation.field for violation in caught.value.violations] == [field]


def outcome(message: bytes, model: Model) -> SightlineError | None:
    try:
        read(oip.ModelInferRequest.FromString(message), model, LIMITS)
    except DecodeError:  # the interceptor answers MALFORMED_MESSAGE
        return None
    except SightlineError as error:
        return error
    return None


@given(st.sampled_from([tensor(), typed(), encoded(RED), raw_encoded(RED)]), st.data())
def test_whatever_comes_is_read_or_refused(
    model: Model, request_: oip.ModelInferRequest, data: st.DataObject
) -> None:
    message = bytearray(request_.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(message), 100) - 1))  # where the fields begin
        message[at] = data.draw(st.integers(0, 255))
    error = outcome(bytes(message), model)
    assert error is None or (error.code is grpc.StatusCode.INVALID_ARGUMENT and error.violations)


def test_a_key_is_bound_to_all_but_the_time_that_is_left() -> None:
    first, second = tensor(), tensor()
    first.parameters["timeout"].int64_param = 5
    second.parameters["timeout"].int64_param = 4
    assert fingerprint(first) == fingerprint(second)
    assert first.parameters["timeout"].int64_param == 5
    changes: list[Change] = [
        lambda r: setattr(r, "model_version", "2"),
        lambda r: setattr(r, "id", "b"),
        lambda r: r.outputs.add(name="best"),
        lambda r: r.raw_input_contents.__setitem__(0, b"other"),
    ]
    for change in changes:
        other = tensor()
        change(other)
        assert fingerprint(other) != fingerprint(first)
