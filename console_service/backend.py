"""The two services behind the console, called with the credential of each caller."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sightline.inference.v1.inference_service_pb2 import ListModelsRequest
from sightline.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from sightline.ingest.v1.ingest_service_pb2 import GetWatermarkRequest
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from console_service.known import KnownCredentials
from console_service.settings import ConsoleSettings
from servicekit.addresses import public_address
from servicekit.errors import SightlineError, from_rpc_error
from servicekit.routes import channel_options
from servicekit.tls import client_credentials

if TYPE_CHECKING:  # types of the stubs, which do not exist at run time
    from sightline.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceAsyncStub

INGEST, INFERENCE = "ingest", "inference"
FULL_NAMES = {
    INGEST: "sightline.ingest.v1.IngestService",
    INFERENCE: "sightline.inference.v1.InferenceService",
}
_HEALTH_SECONDS, _HEALTH_HOLDS_SECONDS = 2.0, 1.0
"""Time for a service to say how it is, and for which its answer holds, s."""
_PROOF_SECONDS = 30.0
_NOBODY = (("authorization", "Bearer nobody"),)
"""A credential that every service refuses that takes credentials at all."""
_NOT_JUDGED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
_ACCEPTED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT)
"""Codes of failed calls whose credential was accepted."""
_OPTIONS: tuple[tuple[str, int], ...] = (
    # A prediction that is larger than gRPC's default of 4 MiB makes a page of its own.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(slots=True)
class HttpCall:
    """One HTTP request, as its calls of the services see it.

    Attributes:
        authorization: value of the metadata `authorization`; None: the caller showed no credential.
        traceparent: the caller's W3C trace context; None: it sent none.
        ends_at: deadline on `time.monotonic`, s.
        timings: time that was spent, by name, s; it becomes the header `Server-Timing`.
    """

    authorization: str | None
    traceparent: str | None
    ends_at: float
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """Metadata that each call of a service carries."""
        pairs = (("authorization", self.authorization), ("traceparent", self.traceparent))
        return [(key, value) for key, value in pairs if value]

    @property
    def remaining(self) -> float:
        """Time left until the deadline, s, >= 0."""
        return max(self.ends_at - time.monotonic(), 0.0)

    def spent(self, name: str, begun: float) -> None:
        """Add the time since `begun`, on `time.monotonic`."""
        self.timings[name] = self.timings.get(name, 0.0) + time.monotonic() - begun


class Backend:
    """Channels to both services.

    Create it in the event loop's thread; a cancelled caller cancels its gRPC call.

    Raises:
        SettingsError: a TLS file cannot be used.
    """

    def __init__(self, settings: ConsoleSettings) -> None:
        credentials = client_credentials(
            settings.backend_tls_ca_file,
            settings.backend_tls_cert_file,
            settings.backend_tls_key_file,
            prefix="backend_",
        )
        self.known = KnownCredentials(time.monotonic)
        self.targets = {INGEST: settings.ingest_target, INFERENCE: settings.inference_target}
        self._channels = {
            name: _channel(target, credentials) for name, target in self.targets.items()
        }
        self._has_certificate = settings.backend_tls_cert_file is not None
        self._health: asyncio.Future[list[str]] | None = None
        self._health_ends_at = 0.0
        self._proven: dict[str, float] = {}
        """Time of the last proof that a service takes bearer credentials, on `time.monotonic`."""
        self.ingest: IngestServiceAsyncStub = IngestServiceStub(self._channels[INGEST])
        self.inference: InferenceServiceAsyncStub = InferenceServiceStub(self._channels[INFERENCE])

    async def close(self) -> None:
        """Close the channels; calls that run end with CANCELLED."""
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))

    async def ask(
        self,
        service: str,
        method: Callable[..., Any],
        request: object,
        call: HttpCall,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> tuple[Any, Mapping[str, str]]:
        """Return the response of a unary method, and its trailing metadata.

        Args:
            service: `ingest` or `inference`.
            method: a method of that service's stub.
            request: its request.
            call: the HTTP request that it belongs to.
            metadata: further metadata.

        Raises:
            SightlineError: the call failed.
        """
        await self.prove(service, call)
        begun = time.monotonic()
        running = method(request, timeout=call.remaining, metadata=[*call.metadata, *metadata])
        try:
            response = await running
            trailing = await running.trailing_metadata()
        except grpc.aio.AioRpcError as error:
            raise self.explained(service, error, call) from None
        finally:
            call.spent(service, begun)
        self.known.accept(service, call.authorization)
        return response, {str(key): str(value) for key, value in trailing or ()}

    async def prove(self, service: str, call: HttpCall) -> None:
        """Refuse a call that the service would take for the console's own.

        With mutual TLS, a service that sees no bearer credential, or takes none, authenticates the
        console's certificate. Whoever reaches the console would then have the console's rights.

        Args:
            service: `ingest` or `inference`.
            call: the request.

        Raises:
            SightlineError: UNAUTHENTICATED: the caller shows no credential; FAILED_PRECONDITION:
                the service takes certificates only.
        """
        if not self._has_certificate:
            return
        if call.authorization is None:
            raise SightlineError(
                grpc.StatusCode.UNAUTHENTICATED,
                "CREDENTIAL_MISSING",
                "the request has no credential: send an API key or a JWT in the header"
                " `Authorization: Bearer ...`, or begin a session",
            )
        if time.monotonic() - self._proven.get(service, -math.inf) < _PROOF_SECONDS:
            return
        method: Any
        method, request = {
            INGEST: (self.ingest.GetWatermark, GetWatermarkRequest()),
            INFERENCE: (self.inference.ListModels, ListModelsRequest()),
        }[service]
        try:
            await method(request, timeout=call.remaining, metadata=_NOBODY)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                self._proven[service] = time.monotonic()
                return
            if error.code() not in _NOT_JUDGED:
                raise self._trusts_certificates(service) from None
            raise self.explained(service, error, call) from None
        raise self._trusts_certificates(service)

    def _trusts_certificates(self, service: str) -> SightlineError:
        return SightlineError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "SERVICE_TAKES_CERTIFICATES_ONLY",
            f"the {service} service takes no API keys and no JWTs, so that it would take every"
            " caller for the console: set api_keys_file, jwt_secret or jwt_jwks there",
        )

    def explained(
        self, service: str, error: grpc.aio.AioRpcError, call: HttpCall
    ) -> SightlineError:
        """Return the error of a failed call, with the service's address where it was not reached.

        Args:
            service: `ingest` or `inference`.
            error: what the call raised.
            call: the request that it belongs to.
        """
        found = from_rpc_error(error)
        if found.code is grpc.StatusCode.UNAUTHENTICATED:
            self.known.refuse(service, call.authorization)
        elif found.code in _ACCEPTED:
            self.known.accept(service, call.authorization)
        if found.reason != found.code.name:  # the service itself says why
            return found
        where = f"the {service} service at {public_address(self.targets[service])}"
        if found.code is grpc.StatusCode.UNAVAILABLE:
            found.message = f"{where} cannot be reached: {found.message}"
            found.reason = "SERVICE_UNREACHABLE"
        elif found.code is grpc.StatusCode.UNIMPLEMENTED:
            found.message = f"{where} does not have this method: it is older than the console"
            found.reason = "SERVICE_TOO_OLD"
        elif found.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            found.message = f"{where} did not answer in time: set the header Sightline-Timeout"
            found.reason = "DEADLINE_EXCEEDED"
        return found

    async def health(self) -> dict[str, str]:
        """Return the health of each service: `SERVING`, `NOT_SERVING`, or the code of the failure.

        An answer holds for a second, and requests of that time share it: a service delays checks
        that come too often.
        """
        if self._health is None or time.monotonic() >= self._health_ends_at:
            self._health = asyncio.gather(*map(self._health_of, FULL_NAMES))
            self._health_ends_at = time.monotonic() + _HEALTH_HOLDS_SECONDS
        states = await asyncio.shield(self._health)
        return dict(zip(FULL_NAMES, states, strict=True))

    async def _health_of(self, service: str) -> str:
        stub: Any = health_pb2_grpc.HealthStub(self._channels[service])
        request = health_pb2.HealthCheckRequest(service=FULL_NAMES[service])
        try:
            answer = await stub.Check(request, timeout=_HEALTH_SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    # Callers' credentials pass through: without TLS no proxy may see them.
    options = [*channel_options(target, plain_secret=credentials is None), *_OPTIONS]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)
