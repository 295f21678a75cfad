"""The one shape of an error over HTTP, and the HTTP status of each gRPC status."""

import logging
import math
import uuid
from collections.abc import Mapping

import grpc
import orjson
from starlette.responses import Response
from starlette.types import Scope

from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)
FACTS = "sightline.facts"
"""Key of a scope: further fields of the request's line in the access log."""
STATUS: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
"""HTTP status by gRPC status, as Google's API design guide has them."""


_INCOMPLETE = ("REQUEST_TOO_LARGE", "REQUEST_STALLED")
"""Reasons for which the rest of a request is not read, so that the connection has no next one."""
_PARTS = ("filter.", "parameters.")
_PLURALS = {"device_ids": "device_id", "model_names": "model_name", "class_names": "class_name"}


def parameter_of(field: str) -> str:
    """Return the parameter of a route for a field of the contract.

    Example:
        >>> parameter_of("filter.device_ids[3]")
        'device_id'
    """
    for part in _PARTS:
        field = field.removeprefix(part)
    name = field.partition("[")[0]
    return _PLURALS.get(name, field)


def body_of(error: SightlineError) -> dict[str, object]:
    """Return an error as JSON holds it.

    `field` is null if the error is not about one field; `retry_after` is null if the server does
    not say how long to wait, s.
    """
    return {
        "code": error.code.name,
        "reason": error.reason,
        "field": parameter_of(error.violations[0].field) if error.violations else None,
        "message": error.message,
        "retryable": error.retryable and not error.do_not_retry,
        "retry_after": error.retry_after,
    }


def response_of(error: SightlineError, status: int | None = None) -> Response:
    """Return the HTTP response for an error.

    Args:
        error: the error.
        status: HTTP status; None: that of the error's code.
    """
    headers = {"Cache-Control": "no-store"}
    if error.code is grpc.StatusCode.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="sightline"'
    if error.reason in _INCOMPLETE:
        headers["Connection"] = "close"
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    return Response(
        orjson.dumps(body_of(error)),
        status or STATUS[error.code],
        headers,
        media_type="application/json",
    )


def unforeseen(scope: Scope, error: Exception) -> SightlineError:
    """Log an exception, and return what the caller may know of it.

    Args:
        scope: the request in which it was raised; its line in the access log gets the number.
        error: the exception.
    """
    error_id = scope[FACTS]["error_id"] = uuid.uuid4().hex[:12]
    logger.error("unforeseen error %s in %s", error_id, scope["path"], exc_info=error)
    return SightlineError(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"internal error; the console's log has it under {error_id}",
    )
