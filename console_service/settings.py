"""Settings of the console."""

from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from servicekit.server_settings import ProcessSettings
from servicekit.settings import BASIC, Address, OptionalPath, TcpAddress, Words, check_pair


class ConsoleSettings(ProcessSettings):
    """The console, which answers with JSON and pages over HTTP what the services know.

    Example: sightline serve console --ingest-target 127.0.0.1:50051
    """

    part: ClassVar[str] = "console"

    listen: TcpAddress = Field(
        "127.0.0.1:8080",
        description="address to serve HTTP on: host:port or [IPv6]:port; port 0: any",
        json_schema_extra=BASIC,
    )
    ingest_target: Address = Field(
        "127.0.0.1:50051",
        description="address of the ingest service: host:port or unix:path",
        json_schema_extra=BASIC,
    )
    inference_target: Address = Field(
        "127.0.0.1:50052",
        description="address of the inference service: host:port or unix:path",
        json_schema_extra=BASIC,
    )
    backend_tls_ca_file: OptionalPath = Field(
        None,
        description="PEM certificates that sign those of both services; not given: no TLS to them",
        json_schema_extra=BASIC,
    )
    backend_tls_cert_file: OptionalPath = Field(
        None,
        description="PEM certificate chain of the console for services with mutual TLS. The"
        " services must accept API keys or JWTs as well: nobody is answered in the console's name",
    )
    backend_tls_key_file: OptionalPath = Field(
        None, description="PEM private key of backend_tls_cert_file"
    )
    tls_cert_file: OptionalPath = Field(
        None,
        description="PEM certificate chain of this server; with tls_key_file: serve HTTPS. New"
        " connections get the one that is in the file then",
        json_schema_extra=BASIC,
    )
    tls_key_file: OptionalPath = Field(
        None, description="PEM private key of tls_cert_file", json_schema_extra=BASIC
    )
    allowed_hosts: Words = Field(
        (),
        description="host names by which browsers may reach the console, such as"
        " console.example,*.plant.example; IP addresses and localhost always may, other names are"
        " refused",
        json_schema_extra=BASIC,
    )
    cors_origins: Words = Field(
        (),
        description="origins of other pages that may read answers, such as https://wall.example;"
        " they send a credential of their own, never the cookie; empty: none",
    )
    secure_cookies: bool = Field(
        False,
        description="mark the session's cookie Secure although HTTPS ends at a proxy before the"
        " console",
    )
    session_hours: float = Field(
        12.0, gt=0, le=24 * 400, description="time after which a browser forgets a session, hours"
    )
    deadline_seconds: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="deadline of a request without the header Sightline-Timeout, s",
    )
    max_request_bytes: int = Field(
        16 * 1024 * 1024, ge=1024, le=2**31 - 1, description="maximum size of a request, bytes"
    )
    receive_timeout_seconds: float = Field(
        10.0,
        ge=1,
        le=3600,
        description="time for the head of a request, and then for each part of its body, to arrive,"
        " s; a body has to bring 16 KiB each second",
    )
    max_requests: int = Field(
        32,
        ge=1,
        le=10_000,
        description="requests that are answered at the same time; a quarter as many with images,"
        " and with credentials that are not known yet. Four times as many may wait",
    )
    max_live: int = Field(
        100, ge=0, le=10_000, description="open event streams of /live; further ones are refused"
    )
    max_connections: int = Field(
        1024, ge=1, le=1_000_000, description="connections; further requests are refused"
    )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            url = urlsplit(origin)
            if url.scheme not in {"http", "https"} or origin != f"{url.scheme}://{url.netloc}":
                raise ValueError(
                    "must be origins, scheme://host or scheme://host:port, without a path"
                )
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if "*" in name.removeprefix("*.") or "/" in name or ":" in name:
                raise ValueError("must be host names without a port, or *.domain")
        return tuple(name.lower() for name in names)

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        check_pair(self.tls_cert_file, self.tls_key_file)
        ca, cert, key = (
            self.backend_tls_ca_file,
            self.backend_tls_cert_file,
            self.backend_tls_key_file,
        )
        if cert and not key:
            raise ValueError("backend_tls_key_file: must be given with backend_tls_cert_file")
        if key and not cert:
            raise ValueError("backend_tls_cert_file: must be given with backend_tls_key_file")
        if cert and not ca:
            raise ValueError("backend_tls_ca_file: must be given with backend_tls_cert_file")
        return self
