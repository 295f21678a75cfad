"""Idempotency keys and request fingerprints."""

import uuid
from dataclasses import replace

import grpc
import pytest

from inference_service.domain import CheckedImage, CheckedRequest, Parameters, RefusedImage
from inference_service.idempotency.keys import fingerprint, read_key
from servicekit.errors import SightlineError, invalid
from tests.unit.inference_service.tiny_onnx import picture
from vision import open_image

KEY = "123e4567-e89b-42d3-a456-426614174000"
OPENED = open_image(picture())
A = CheckedImage(0, "a", OPENED, b"\x01" * 32)
B = CheckedImage(1, "b", OPENED, b"\x02" * 32)
QUESTION = CheckedRequest("plates", "1", Parameters(), (A, B))


def key(text: str, caller: str = "c", method: str = "Infer") -> bytes | None:
    return read_key([text], caller=caller, method=method)


def test_no_key() -> None:
    assert read_key([], caller="c", method="Infer") is None


def test_a_key_belongs_to_caller_and_method() -> None:
    keys = [key(KEY), key(KEY, caller="d"), key(KEY, method="Other"), key(str(uuid.uuid4()))]
    assert len(set(keys)) == 4
    assert key(KEY) == keys[0]
    assert all(changed is not None and len(changed) == 32 for changed in keys)


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    assert key(KEY, caller="ab", method="c") != key(KEY, caller="a", method="bc")


def test_case_does_not_matter() -> None:
    assert key(KEY.upper()) == key(KEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        KEY.replace("-", ""),
        f"{{{KEY}}}",
        f"urn:uuid:{KEY}",
        f" {KEY}",
        "c232ab00-9414-11ec-b3c8-9f6bdeced846",
        str(uuid.uuid5(uuid.NAMESPACE_DNS, "x")),
        "00000000-0000-0000-0000-000000000000",
        "123e4567-e89b-42d3-c456-426614174000",  # not the variant of RFC 9562
    ],
)
def test_a_key_must_be_a_uuid4(text: str) -> None:
    with pytest.raises(SightlineError, match="UUIDv4") as caught:
        key(text)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "IDEMPOTENCY_KEY_INVALID"
    assert caught.value.violations[0].field == "idempotency-key"


def test_one_key_only() -> None:
    with pytest.raises(SightlineError, match="once, got 2 values") as caught:
        read_key([KEY, KEY], caller="c", method="Infer")
    assert caught.value.reason == "IDEMPOTENCY_KEY_INVALID"


@pytest.mark.parametrize(
    "other",
    [
        replace(QUESTION, model_name="other"),
        replace(QUESTION, model_name=""),
        replace(QUESTION, model_version="2"),
        replace(QUESTION, model_version=""),
        replace(QUESTION, parameters=Parameters(confidence=0.5)),
        replace(QUESTION, parameters=Parameters(confidence=0.0)),
        replace(QUESTION, parameters=Parameters(iou=0.5)),
        replace(QUESTION, parameters=Parameters(max_detections=5)),
        replace(QUESTION, parameters=Parameters(top_k=5)),
        replace(QUESTION, parameters=Parameters(mask_format="polygon")),
        replace(QUESTION, parameters=Parameters(polygon_tolerance=0.0)),
        replace(QUESTION, images=(A,)),
        replace(QUESTION, images=(B, A)),
        replace(QUESTION, images=(A, replace(B, sha256=b"\x03" * 32))),
        replace(QUESTION, images=(A, replace(B, image_id="c"))),
    ],
)
def test_every_part_of_a_request_is_in_its_fingerprint(other: CheckedRequest) -> None:
    assert fingerprint(other) != fingerprint(QUESTION)


@pytest.mark.parametrize(
    ("parameters", "stored"),
    [
        (Parameters(), "46911835b00be7e8277aa9a613bb2cb476f882cbfdb634090ba9fd2a9eafecbd"),
        (
            Parameters(0.25, 0.5, 10, 3),
            "0d777c3e5a824fdb19c75c40e75db29e9e75e9619fa4be29b13a787617b37b66",
        ),
    ],
)
def test_claims_of_a_version_without_masks_stay_valid(parameters: Parameters, stored: str) -> None:
    assert fingerprint(replace(QUESTION, parameters=parameters)).hex() == stored


def test_parameters_of_masks_do_not_run_into_each_other() -> None:
    masks = [
        Parameters(mask_format="rle"),
        Parameters(mask_format="rle", polygon_tolerance=1.0),
        Parameters(mask_format="off", polygon_tolerance=1.0),
        Parameters(polygon_tolerance=1.0),
    ]
    assert len({fingerprint(replace(QUESTION, parameters=each)) for each in masks}) == 4


def test_the_same_request_has_the_same_fingerprint() -> None:
    refused = RefusedImage(1, "b", B.sha256, invalid("images[1].data", "is bad"))
    assert fingerprint(replace(QUESTION)) == fingerprint(QUESTION)
    assert fingerprint(replace(QUESTION, images=(A, refused))) == fingerprint(QUESTION)
