"""Each rule for a request, and each bound from both sides."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from inference_service.domain import (
    CheckedImage,
    CheckedRequest,
    ImageContent,
    Parameters,
    RefusedImage,
)
from inference_service.idempotency.keys import fingerprint
from inference_service.uploads.errors import reference_gone, store_down
from inference_service.validate import RequestLimits, check, refuse_if_all_bad, resolve_none
from servicekit.errors import SightlineError, invalid
from tests.unit.inference_service.tiny_onnx import bomb, picture
from vision import ImageLimits, MaskFormat, open_image

RED = picture()
LIMITS = RequestLimits()


def image(data: bytes = RED, **fields: Any) -> inference_pb2.Image:
    return inference_pb2.Image(data=data, **fields)


def ask(*images: inference_pb2.Image, **fields: Any) -> inference_service_pb2.InferRequest:
    return inference_service_pb2.InferRequest(images=images, **fields)


def refusal(
    request: inference_service_pb2.InferRequest, limits: RequestLimits = LIMITS
) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        check(request, limits)
    return caught.value


def fields(error: SightlineError) -> list[str]:
    return [violation.field for violation in error.violations]


def test_a_good_request_is_taken_as_it_is() -> None:
    hint = inference_pb2.ModelHint(name="plates", version="2")
    question = check(ask(image(image_id="a"), image(), model=hint), LIMITS)
    digest = hashlib.sha256(RED).digest()
    opened = open_image(RED)  # does not count when pictures are compared
    assert question.images == (
        CheckedImage(0, "a", opened, digest),
        CheckedImage(1, "", opened, digest),
    )
    assert (question.model_name, question.model_version) == ("plates", "2")
    assert question.parameters == Parameters(None, None, None, None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_four_types_are_known_by_content(kind: str) -> None:
    question = check(ask(image(picture(kind=kind))), LIMITS)
    assert isinstance(question.images[0], CheckedImage)


@pytest.mark.parametrize("count", [0, 3])
def test_number_of_images(count: int) -> None:
    error = refusal(ask(*[image()] * count), RequestLimits(max_images=2))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(error) == ["images"]
    assert "1 to 2" in error.message
    assert check(ask(image(), image()), RequestLimits(max_images=2))


PARAMETERS: list[tuple[str, list[float], list[float]]] = [
    ("confidence_threshold", [0.0, 0.5, 1.0], [-0.01, 1.01, math.nan, math.inf, -math.inf]),
    ("iou_threshold", [0.0, 0.5, 1.0], [-0.01, 1.01, math.nan, math.inf, -math.inf]),
    ("max_detections", [1, 10_000], [0, -1, 10_001]),
    ("top_k", [1, 1000], [0, -1, 1001]),
    ("polygon_tolerance", [0.0, 0.5, 100.0], [-0.01, 100.01, math.nan, math.inf, -math.inf]),
]


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, good, _ in PARAMETERS for v in good])
def test_parameters_within_their_bounds(name: str, value: float) -> None:
    parameters_message = inference_pb2.InferParameters(**{name: value})  # type: ignore[arg-type]
    parameters = check(ask(image(), parameters=parameters_message), LIMITS).parameters
    values = [parameters.confidence, parameters.iou, parameters.max_detections, parameters.top_k]
    values.append(parameters.polygon_tolerance)
    at = [row[0] for row in PARAMETERS].index(name)
    assert values[at] == value
    assert values[:at] + values[at + 1 :] == [None] * 4


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, None),
        (1, "off"),
        (2, "polygon"),
        (3, "rle"),
    ],
)
def test_formats_of_masks(value: int, expected: MaskFormat | None) -> None:
    message = inference_pb2.InferParameters(mask_format=value)  # type: ignore[arg-type]
    assert check(ask(image(), parameters=message), LIMITS).parameters.mask_format == expected


@pytest.mark.parametrize("value", [4, -1, 2**31 - 1])
def test_a_format_of_masks_that_does_not_exist_is_named(value: int) -> None:
    message = inference_pb2.InferParameters(mask_format=value)  # type: ignore[arg-type]
    error = refusal(ask(image(), parameters=message))
    assert fields(error) == ["parameters.mask_format"]
    assert f"MASK_FORMAT_RLE, got {value}" in error.message


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, _, bad in PARAMETERS for v in bad])
def test_parameters_beyond_their_bounds(name: str, value: float) -> None:
    parameters_message = inference_pb2.InferParameters(**{name: value})  # type: ignore[arg-type]
    error = refusal(ask(image(), parameters=parameters_message))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(error) == [f"parameters.{name}"]


def test_length_of_an_image_id_counts_bytes() -> None:
    assert check(ask(image(image_id="é" * 256)), LIMITS)
    assert fields(refusal(ask(image(image_id="é" * 256 + "x")))) == ["images[0].image_id"]


@pytest.mark.parametrize("name", ["name", "version"])
def test_length_of_a_model_hint(name: str) -> None:
    assert check(ask(image(), model=inference_pb2.ModelHint(**{name: "m" * 256})), LIMITS)
    error = refusal(ask(image(), model=inference_pb2.ModelHint(**{name: "m" * 257})))
    assert fields(error) == [f"model.{name}"]


@pytest.mark.parametrize(
    ("good", "bad", "field"),
    [
        ({str(n): "" for n in range(16)}, {str(n): "" for n in range(17)}, "context"),
        ({"é" * 32: "x"}, {"é" * 32 + "k": "x"}, "context"),
        ({"k": "x"}, {"": "x"}, "context"),
        ({"plant": "é" * 128}, {"plant": "é" * 128 + "x"}, "context['plant']"),
    ],
)
def test_bounds_of_the_context(good: dict[str, str], bad: dict[str, str], field: str) -> None:
    assert check(ask(image(), context=good), LIMITS)
    assert fields(refusal(ask(image(), context=bad))) == [field]


@pytest.mark.parametrize("name", ["name", "version", "platform"])
def test_length_of_the_client(name: str) -> None:
    assert check(ask(image(), client=inference_pb2.Client(**{name: "é" * 64})), LIMITS)
    error = refusal(ask(image(), client=inference_pb2.Client(**{name: "é" * 64 + "x"})))
    assert fields(error) == [f"client.{name}"]


def test_context_and_client_do_not_make_another_request() -> None:
    labelled = ask(image(), context={"plant": "3"}, client=inference_pb2.Client(name="camera"))
    assert fingerprint(check(labelled, LIMITS)) == fingerprint(check(ask(image()), LIMITS))


def test_sha256_is_compared() -> None:
    assert check(ask(image(sha256=hashlib.sha256(RED).digest())), LIMITS)
    error = refusal(ask(image(sha256=hashlib.sha256(b"other").digest())))
    assert error.reason == "IMAGE_HASH_MISMATCH"
    assert fields(error) == ["images[0].sha256"]


@pytest.mark.parametrize("size", [1, 31, 33])
def test_sha256_has_32_bytes(size: int) -> None:
    error = refusal(ask(image(sha256=b"x" * size)))
    assert fields(error) == ["images[0].sha256"]
    assert "32 bytes" in error.message


@pytest.mark.parametrize(
    ("data", "limits", "reason"),
    [
        (b"", ImageLimits(), "IMAGE_EMPTY"),
        (RED, ImageLimits(max_bytes=len(RED) - 1), "IMAGE_TOO_LARGE"),
        (b"GIF89a" + bytes(100), ImageLimits(), "IMAGE_TYPE_UNSUPPORTED"),
        (bomb(), ImageLimits(), "IMAGE_DIMENSIONS_TOO_LARGE"),
        (RED, ImageLimits(max_pixels=128 * 128 - 1), "IMAGE_DIMENSIONS_TOO_LARGE"),
        (RED[:30], ImageLimits(), "IMAGE_CORRUPT"),
    ],
)
def test_images_are_refused_by_their_content(data: bytes, limits: ImageLimits, reason: str) -> None:
    error = refusal(ask(image(data)), RequestLimits(image=limits))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == reason
    assert fields(error) == ["images[0].data"]


def test_images_at_their_bounds_pass() -> None:
    limits = ImageLimits(max_bytes=len(RED), max_pixels=128 * 128)
    assert check(ask(image()), RequestLimits(image=limits))


def test_an_image_without_a_source_is_empty() -> None:
    assert refusal(ask(inference_pb2.Image(image_id="x"))).reason == "IMAGE_EMPTY"


def stored(reference: str) -> ImageContent:
    """Return a resolver of the references in these tests."""
    if reference == "down":
        raise store_down()
    if reference not in {"red", "bad"}:
        raise reference_gone(hashlib.sha256(RED).digest())
    data = RED if reference == "red" else b"no picture"
    return ImageContent(data, hashlib.sha256(data).digest())


def test_a_reference_is_the_image_that_it_stands_for() -> None:
    there = inference_pb2.Image(reference="red", image_id="a")
    by_reference = check(ask(there), LIMITS, stored)
    by_value = check(ask(image(image_id="a")), LIMITS, stored)
    assert by_reference.images == (replace(picture_of(by_value), origin="reference"),)
    assert fingerprint(by_reference) == fingerprint(by_value)


def picture_of(question: CheckedRequest) -> CheckedImage:
    (first,) = question.images
    assert isinstance(first, CheckedImage)
    return first


def test_what_a_reference_stands_for_is_checked_as_well() -> None:
    with pytest.raises(SightlineError) as caught:
        check(ask(inference_pb2.Image(reference="bad")), LIMITS, stored)
    assert caught.value.reason == "IMAGE_TYPE_UNSUPPORTED"
    assert fields(caught.value) == ["images[0].reference"]
    with pytest.raises(SightlineError) as caught:
        check(ask(inference_pb2.Image(reference="red", sha256=bytes(32))), LIMITS, stored)
    assert caught.value.reason == "IMAGE_HASH_MISMATCH"


def test_a_reference_to_nothing_is_refused_alone() -> None:
    gone = inference_pb2.Image(reference="gone", image_id="g")
    question = check(ask(image(), gone), LIMITS, stored)
    refused = question.images[1]
    assert isinstance(refused, RefusedImage)
    assert refused.error.message.startswith("images[1].reference is valid, but ")
    assert fields(refused.error) == ["images[1].reference"]
    # It is the same request as when its picture was there, or is sent again.
    again = check(ask(image(), image(image_id="g")), LIMITS, stored)
    assert fingerprint(question) == fingerprint(again)


def test_what_is_lost_alone_is_left_to_the_answer_that_may_be_kept() -> None:
    question = check(ask(inference_pb2.Image(reference="gone")), LIMITS, stored)
    (refused,) = question.images
    assert isinstance(refused, RefusedImage)
    assert refused.lost
    assert fingerprint(question) == fingerprint(check(ask(image()), LIMITS))


def test_a_reference_of_nobody_s_is_another_request_than_any_image() -> None:
    forged = inference_pb2.Image(reference="forged", image_id="g")
    question = check(ask(image(), forged), LIMITS, resolve_none)
    again = check(ask(image(), image(image_id="g")), LIMITS)
    assert fingerprint(question) != fingerprint(again)


def test_only_references_to_nothing_keep_their_code() -> None:
    with pytest.raises(SightlineError) as caught:
        check(ask(*[inference_pb2.Image(reference="gone")] * 2), LIMITS, resolve_none)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.reason == "REFERENCE_UNKNOWN"
    assert fields(caught.value) == ["images[0].reference", "images[1].reference"]


def test_a_store_that_is_down_is_no_image_s_fault() -> None:
    with pytest.raises(SightlineError) as caught:
        check(ask(image(), inference_pb2.Image(reference="down")), LIMITS, stored)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_one_bad_image_is_refused_alone() -> None:
    question = check(ask(image(), image(b"no picture", image_id="bad"), image()), LIMITS)
    assert [type(each) for each in question.images] == [CheckedImage, RefusedImage, CheckedImage]
    refused = question.images[1]
    assert isinstance(refused, RefusedImage)
    assert (refused.index, refused.image_id) == (1, "bad")
    assert refused.error.reason == "IMAGE_TYPE_UNSUPPORTED"
    assert fields(refused.error) == ["images[1].data"]


def test_all_images_bad_names_every_field() -> None:
    error = refusal(ask(image(b""), image(sha256=b"x")))
    assert error.reason == "IMAGES_INVALID"
    assert fields(error) == ["images[0].data", "images[1].sha256"]


def test_all_images_bad_for_one_reason_keeps_it() -> None:
    assert refusal(ask(image(b""), image(b""))).reason == "IMAGE_EMPTY"


def test_not_all_bad_is_no_error() -> None:
    refuse_if_all_bad([invalid("images[0].data", "is bad"), None])


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", RED[:33], b"BM"]))
def test_whatever_is_sent_is_checked_or_refused_with_its_field(data: bytes, start: bytes) -> None:
    try:
        question = check(ask(image(start + data)), LIMITS)
    except SightlineError as error:
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017 - may or may not raise
        assert fields(error) == ["images[0].data"]  # noqa: PT017
    else:
        assert isinstance(question.images[0], CheckedImage)
