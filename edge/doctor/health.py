"""One health check: is the service ready, how far is it, what does its clock say?"""

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
class Health:
    """What a health check was answered."""

    status: str
    """As the protocol names it: `SERVING`, `NOT_SERVING`, ..."""
    seconds: float
    """From the question to the answer."""
    clock_offset: float | None
    """Server's clock minus this one in seconds, known to half of `seconds`. None: not said."""
    version: str | None
    """Of the server. None: not said."""

    @property
    def is_serving(self) -> bool:
        """Whether the service is ready."""
        return self.status == "SERVING"


def ask(
    asked: Endpoint, service: str, timeout: float, wall_clock: Callable[[], float] = time.time
) -> Health:
    """Ask a service for its health, twice: the second time on a connection that stands.

    Args:
        asked: the server.
        service: its full name.
        timeout: seconds for both.
        wall_clock: this machine's, in Unix seconds.

    Raises:
        SightlineError: the call failed; NOT_FOUND: the server has no such service.
    """
    ends_at = time.monotonic() + timeout
    request = health_pb2.HealthCheckRequest(service=service)
    with asked.channel() as channel:
        # The published types of HealthStub leave its methods out.
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            check(request, timeout=timeout, metadata=asked.metadata)
            left, began, clock = ends_at - time.monotonic(), time.monotonic(), wall_clock()
            answered = check.with_call(request, timeout=left, metadata=asked.metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        seconds = time.monotonic() - began
    response, call = cast("_Answer", answered)
    said = dict(call.trailing_metadata() or ())
    return Health(
        health_pb2.HealthCheckResponse.ServingStatus.Name(response.status),
        seconds,
        _offset(said.get(TIME_KEY), clock + seconds / 2),
        _text(said.get(VERSION_KEY)),
    )


def _offset(said: str | bytes | None, clock: float) -> float | None:
    try:
        return datetime.fromisoformat(_text(said) or "").timestamp() - clock
    except ValueError:
        return None


def _text(said: str | bytes | None) -> str | None:
    return said.decode("ascii", "replace") if isinstance(said, bytes) else said
