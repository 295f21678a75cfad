"""One health check of a service: its status, round trip, clock and version."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import grpc
from grpc_health.v1 import health_pb2

from edge.channel import Endpoint
from servicekit.about import TIME_KEY, VERSION_KEY
from servicekit.errors import from_rpc_error

INGEST = "sightline.ingest.v1.IngestService"
INFERENCE = "sightline.inference.v1.InferenceService"
_Answer = tuple[health_pb2.HealthCheckResponse, grpc.Call]


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The answer to a health check."""

    status: str
    """`SERVING`, `NOT_SERVING`, ..., as the health protocol names it."""
    seconds: float
    """From the request to the answer."""
    clock_offset: float | None
    """Server's clock minus this one in seconds, exact to half of `seconds`. None: not known."""
    version: str | None
    """Of the server. None: not known."""

    @property
    def is_serving(self) -> bool:
        """True if the service is ready."""
        return self.status == "SERVING"


def ask(
    server: Endpoint, service: str, timeout: float, wall_clock: Callable[[], float] = time.time
) -> HealthReport:
    """Ask a service for its health, twice: the second time on an open connection.

    Args:
        server: the address and credentials.
        service: its full name.
        timeout: seconds for both.
        wall_clock: this machine's, in Unix seconds.

    Raises:
        SightlineError: the call failed; NOT_FOUND: the server has no such service.
    """
    ends_at = time.monotonic() + timeout
    request = health_pb2.HealthCheckRequest(service=service)
    with server.channel() as channel:
        # The published types of HealthStub leave its methods out.
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            check(request, timeout=timeout, metadata=server.metadata)
            left, began, clock = ends_at - time.monotonic(), time.monotonic(), wall_clock()
            answered = check.with_call(request, timeout=left, metadata=server.metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        seconds = time.monotonic() - began
    response, call = cast("_Answer", answered)
    metadata = dict(call.trailing_metadata() or ())
    return HealthReport(
        health_pb2.HealthCheckResponse.ServingStatus.Name(response.status),
        seconds,
        _offset(metadata.get(TIME_KEY), clock + seconds / 2),
        _text(metadata.get(VERSION_KEY)),
    )


def _offset(time_text: str | bytes | None, clock: float) -> float | None:
    try:
        return datetime.fromisoformat(_text(time_text) or "").timestamp() - clock
    except ValueError:
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
