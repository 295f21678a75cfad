"""Settings of every gRPC server: addresses, limits, TLS and credentials."""

from typing import Annotated, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from servicekit import resources
from servicekit.addresses import stays_here
from servicekit.quotas import parse_method_limits
from servicekit.settings import (
    BASIC,
    Address,
    OptionalPath,
    OptionalSecret,
    OptionalTcpAddress,
    Settings,
    Words,
    check_pair,
)

MIN_SECRET_BYTES = 32
"""Minimum length of a key of HS256 (RFC 7518, section 3.2)."""


_CALLS_RECEIVED_AT_ONCE = 32
_MIN_AGE_SECONDS = 0.1
_MEMORY_SHARE = 4  # requests in flight may take a quarter of the memory by default


def _check_method_limits(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words if each is a method limit; the server checks the methods' names."""
    parse_method_limits(words)
    return words


def _check_age(seconds: float) -> float:
    """Return the age if clients do more between two connections than to connect."""
    if 0 < seconds < _MIN_AGE_SECONDS:
        raise ValueError(f"must be 0 or at least {_MIN_AGE_SECONDS:g}")
    return seconds


def check_secret(secret: SecretStr | None) -> SecretStr | None:
    """Return the secret if it is long enough to sign with."""
    if secret is not None and len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"must be at least {MIN_SECRET_BYTES} bytes")
    return secret


def _check_jwks(place: str) -> str:
    """Return the path or URL if its content cannot be changed on the network."""
    if "://" not in place:
        return place
    url = urlsplit(place)
    trusted = url.scheme == "https" or (url.scheme == "http" and stays_here(f"[{url.hostname}]:0"))
    if not trusted or not url.hostname:
        raise ValueError("must be a path, an https:// URL, or an http:// URL of this machine")
    if "@" in url.netloc:
        raise ValueError("must have no user and no password: the URL is fetched without them")
    return place


def _port(url: SplitResult) -> int | None:
    try:
        return url.port
    except ValueError:
        return None


def _check_otlp(endpoint: str) -> str:
    """Return the endpoint if it is an address for OTLP over gRPC."""
    if not endpoint:
        return endpoint
    url = urlsplit(endpoint)
    rest = (url.path.strip("/"), url.query, url.fragment, url.username)
    if url.scheme not in {"http", "https"} or not url.hostname or not _port(url) or any(rest):
        raise ValueError("must be http://host:port or https://host:port (OTLP/gRPC is port 4317)")
    return endpoint


class ProcessSettings(Settings):
    """The settings of every process that serves: its address, metrics, draining and logs."""

    listen: Address = Field(default="127.0.0.1:0", description="address to serve on; port 0: any")
    metrics_listen: OptionalTcpAddress = Field(
        default="",
        description="address of Prometheus metrics over HTTP, host:port; empty: off",
        json_schema_extra=BASIC,
    )
    grace_seconds: float = Field(
        default=10.0,
        ge=0,
        le=600,
        description="time for running calls to finish after SIGTERM, s",
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    ] = Field(default="info", description="minimum level that is logged", json_schema_extra=BASIC)
    log_format: Literal["console", "json"] | None = Field(
        default=None, description="format of log lines; default: console on a terminal, else json"
    )
    access_log: bool = Field(
        default=True, description="log a line for each call when it ends, at level info"
    )


class ServerSettings(ProcessSettings):
    """The settings of every gRPC server of Sightline."""

    listen: Address = Field(
        default="127.0.0.1:0",
        description="address to serve gRPC on: host:port, [IPv6]:port or unix:path; port 0: any",
        json_schema_extra=BASIC,
    )
    default_deadline_seconds: float = Field(
        default=30.0,
        gt=0,
        le=86_400,
        description="deadline of a call that has none, s; streams of PredictionLog and"
        " WatchPredictions get none",
    )
    max_message_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=1024,
        le=2**31 - 1,
        description="maximum size of a message in either direction, bytes",
    )
    max_bytes_in_flight: int | None = Field(
        default=None,
        ge=1024,
        le=1 << 50,
        description="maximum size of the requests in flight together, at least max_message_bytes,"
        " bytes; default: 32 times max_message_bytes, but at most a quarter of the memory that the"
        " process may use",
    )
    receive_timeout_seconds: float = Field(
        default=10.0,
        ge=1,
        le=3600,
        description="time for a message to arrive once the server waits for it, s; a call or stream"
        " without it is ended. While others wait for memory, the callers that use most of it are"
        " ended after 1 s",
    )
    max_concurrent_streams: int = Field(
        default=128,
        ge=1,
        le=2**31 - 1,
        description="maximum number of calls of one connection; its client queues others",
    )
    max_streams_per_caller: int = Field(
        default=4096,
        ge=1,
        le=2**31 - 1,
        description="maximum number of calls and streams of one caller, over all its connections;"
        " without credentials each connection is a caller",
    )
    max_connections: int = Field(
        default=8192,
        ge=1,
        le=2**31 - 1,
        description="maximum number of connections of all callers; further ones are closed",
    )
    max_connection_age_seconds: Annotated[float, AfterValidator(_check_age)] = Field(
        default=0.0,
        ge=0,
        le=1_000_000,
        description="age at which a connection is ended, at least 0.1 s, varied by up to 10 %, so"
        " that clients connect anew and a new replica gets its share of them; no call fails by it;"
        " 0: never",
    )
    connection_grace_seconds: float | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="time for the calls of a connection that has reached its age to end, s; those"
        " that run longer fail as UNAVAILABLE; default: as long as they need",
    )
    otlp_endpoint: Annotated[str, AfterValidator(_check_otlp)] = Field(
        default="",
        description="OpenTelemetry collector for spans by OTLP over gRPC, http://host:port or"
        " https://host:port; empty: none",
    )
    otlp_sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the calls without a caller's trace that get a span; a caller's trace"
        " is recorded if the caller records it",
    )
    tls_cert_file: OptionalPath = Field(
        default=None,
        description="PEM certificate chain of this server; with tls_key_file: serve TLS. New"
        " connections get the one that is in the file then",
        json_schema_extra=BASIC,
    )
    tls_key_file: OptionalPath = Field(
        default=None, description="PEM private key of tls_cert_file", json_schema_extra=BASIC
    )
    tls_client_ca_file: OptionalPath = Field(
        default=None,
        description="PEM certificates of the CA of all clients (mutual TLS)",
    )

    tls_client_is_device: bool = Field(
        default=True,
        description="true: a client's certificate names the only device that it may log as;"
        " false: it may log as every device, as a gateway does",
    )
    api_keys_file: OptionalPath = Field(
        default=None,
        description="SQLite file of API keys, written by `sightline keys create`",
        json_schema_extra=BASIC,
    )
    jwt_secret: Annotated[OptionalSecret, AfterValidator(check_secret)] = Field(
        default=None, description="secret that signs JWTs of HS256, at least 32 bytes"
    )
    jwt_jwks: Annotated[str, AfterValidator(_check_jwks)] = Field(
        default="",
        description="file or URL of the JWKS that verifies JWTs of RS256 and ES256; empty: none",
    )
    jwt_audience: str = Field(
        default="",
        description="required value in the claim aud of every JWT; needed with jwt_jwks",
    )
    jwt_issuer: str = Field(
        default="", description="required claim iss of every JWT; empty: not checked"
    )
    jwt_leeway_seconds: float = Field(
        default=30.0, ge=0, le=600, description="allowed clock difference of JWT issuers, s"
    )
    jwt_devices_claim: str = Field(
        default="devices",
        min_length=1,
        description="claim of a JWT that lists its devices, exact or prefix*",
    )
    rate_limit_per_second: float = Field(
        default=0.0,
        ge=0,
        le=1e9,
        description="rate limit of each caller, calls and messages of streams per second;"
        " 0: no limit",
    )
    rate_limit_burst: int = Field(
        default=20,
        ge=1,
        le=10**9,
        description="calls and messages that a caller may send at once after a pause",
    )
    rate_limit_bytes_per_second: float = Field(
        default=0.0,
        ge=0,
        le=1e12,
        description="rate limit of each caller, bytes per second, and the same number at once after"
        " a pause; one message always passes; 0: no limit",
    )

    rate_limits: Annotated[Words, AfterValidator(_check_method_limits)] = Field(
        default=(),
        description="rate limits of methods for each caller, calls per second, and after a colon"
        " the number at once after a pause, such as Infer=20/s:40,UploadImage=5/s",
    )

    @property
    def bytes_in_flight(self) -> int:
        """`max_bytes_in_flight`, or its default."""
        if self.max_bytes_in_flight:
            return self.max_bytes_in_flight
        default = _CALLS_RECEIVED_AT_ONCE * self.max_message_bytes
        available = resources.memory() or default * _MEMORY_SHARE
        return max(min(default, available // _MEMORY_SHARE), self.max_message_bytes)

    @model_validator(mode="after")
    def _fits_one_message(self) -> Self:
        if self.bytes_in_flight < self.max_message_bytes:
            raise ValueError(
                f"max_bytes_in_flight: must be at least max_message_bytes, {self.max_message_bytes}"
                f" (got {self.max_bytes_in_flight})"
            )
        return self

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        check_pair(self.tls_cert_file, self.tls_key_file)
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise ValueError("tls_cert_file: must be given with tls_client_ca_file")
        return self

    @model_validator(mode="after")
    def _credentials_stay_secret(self) -> Self:
        credentials = (
            ("api_keys_file", self.api_keys_file),
            ("jwt_secret", self.jwt_secret),
            ("jwt_jwks", self.jwt_jwks),
        )
        for name, value in credentials:
            if value and not self.tls_cert_file and not stays_here(self.listen):
                raise ValueError(
                    f"tls_cert_file: must be given with {name}, or credentials would be sent to"
                    f" {self.listen} in plain text; or listen on a loopback or unix: address"
                )
        if self.jwt_jwks and not self.jwt_audience:
            raise ValueError(
                "jwt_audience: must be given with jwt_jwks, or any service's tokens are valid"
            )
        return self
