"""Errors of calls to the services, and whether they show that a credential is accepted."""

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from console_service.backend import INGEST, Backend, HttpCall
from console_service.settings import ConsoleSettings
from servicekit.settings import load

CALL = HttpCall("Bearer a", None, 0.0)


def failed(code: grpc.StatusCode, details: str = "no") -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details, None)


@pytest.mark.parametrize(
    ("code", "is_known"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, False),
        (grpc.StatusCode.PERMISSION_DENIED, True),
        (grpc.StatusCode.INVALID_ARGUMENT, True),
    ],
)
async def test_a_failure_says_whether_the_credential_was_accepted(
    code: grpc.StatusCode, is_known: bool
) -> None:
    backend = Backend(load(ConsoleSettings, [], prog="console"))
    if not is_known:
        backend.known.accept(INGEST, CALL.authorization)
    backend.explained(INGEST, failed(code), CALL)
    assert backend.known.has(INGEST, CALL.authorization) is is_known
    await backend.close()


@pytest.mark.parametrize(
    ("code", "reason", "sentence"),
    [
        (grpc.StatusCode.UNAVAILABLE, "SERVICE_UNREACHABLE", "cannot be reached: no"),
        (grpc.StatusCode.UNIMPLEMENTED, "SERVICE_TOO_OLD", "older than the console"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "Sightline-Timeout"),
    ],
)
async def test_a_failure_without_details_names_the_service(
    code: grpc.StatusCode, reason: str, sentence: str
) -> None:
    backend = Backend(load(ConsoleSettings, [], prog="console"))
    error = backend.explained(INGEST, failed(code), CALL)
    assert error.reason == reason
    assert "the ingest service at 127.0.0.1:50051" in error.message
    assert sentence in error.message
    await backend.close()
