"""Errors over HTTP: one shape, one table."""

import grpc
import orjson
import pytest

from console_service.errors import STATUS, response_of
from servicekit.errors import SightlineError, invalid


def test_every_code_has_a_status() -> None:
    assert set(STATUS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    assert all(400 <= status < 600 for status in STATUS.values())


def test_an_error_says_what_to_mend() -> None:
    response = response_of(invalid("limit", "must be at most 1000, got 1001"))
    assert response.status_code == 400
    assert orjson.loads(response.body) == {
        "code": "INVALID_ARGUMENT",
        "reason": "INVALID_FIELD",
        "field": "limit",
        "message": "limit must be at most 1000, got 1001",
        "retryable": False,
        "retry_after": None,
    }


def test_an_error_says_when_to_try_again_and_how_to_sign_in() -> None:
    full = SightlineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "m", retry_after=1.2)
    assert response_of(full).headers["retry-after"] == "2"
    assert orjson.loads(response_of(full).body)["retry_after"] == 1.2
    nobody = SightlineError(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING", "m")
    assert response_of(nobody).headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("field", "parameter"),
    [
        ("filter.device_ids", "device_id"),
        ("filter.class_names[3]", "class_name"),
        ("filter.start_time", "start_time"),
        ("device_ids", "device_id"),
        ("parameters.top_k", "top_k"),
        ("images[2].sha256", "images[2].sha256"),
    ],
)
def test_a_field_of_the_contract_has_the_name_of_its_parameter(field: str, parameter: str) -> None:
    assert orjson.loads(response_of(invalid(field, "must be ...")).body)["field"] == parameter


def test_a_push_back_is_not_retryable() -> None:
    error = SightlineError(grpc.StatusCode.UNAVAILABLE, "X", "m", do_not_retry=True)
    assert orjson.loads(response_of(error).body)["retryable"] is False
