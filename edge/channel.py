"""The connection of a device to a service: TLS, credential and keepalive options."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from servicekit.addresses import public_address, stays_here
from servicekit.errors import SightlineError
from servicekit.routes import channel_options

# A silent network path is detected within 30 s; TCP alone would take a quarter of an hour. After an
# outage the next attempt comes within 5 s; gRPC's default is two minutes.
OPTIONS: tuple[tuple[str, int], ...] = (
    # With gRPC's default of 4 MiB, an answer with thousands of detections, or a list of models with
    # thousands of labels, would fail here after the server has done the work.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 10_000),
    # A ping waits behind up to 64 KiB in flight: 20 s are enough at 4 kB/s.
    ("grpc.keepalive_timeout_ms", 20_000),
    # Without this option gRPC waits a minute, whatever the keepalive timeout is.
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Despite its name, the timeout of one attempt to connect.
    ("grpc.min_reconnect_backoff_ms", 10_000),
)
# gRPC takes the first address of a name that it can reach. Names of several replicas are answered
# by some DNS servers in the same order for all devices, which would all be at one replica.
_SHUFFLED = (
    "grpc.service_config",
    '{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}',
)
_LISTS = ("ipv4:", "ipv6:", "vsock:")
"""Targets that are addresses in the order in which somebody wants them tried."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address and credentials of a service. It opens no connection by itself.

    Attributes:
        target: `host:port`, or any target that gRPC's name resolution understands.
        credentials: TLS credentials. None: plain text.
        api_key: API key or JWT, sent as `authorization: Bearer ...`. None: none is sent.
        api_key_file: file with the API key or JWT. It is read for every call, so that it can be
            replaced.

    Raises:
        ValueError: the API key would leave this machine in plain text, or is malformed.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_file: Path | None = None

    def __post_init__(self) -> None:
        if self.api_key and not _is_credential(self.api_key):
            # The message must not contain the key. gRPC would only say "metadata was invalid".
            raise ValueError("api_key must be one line of printable ASCII")
        has_key = bool(self.api_key or self.api_key_file)
        if has_key and self.credentials is None and not stays_here(self.target):
            raise ValueError(
                f"api_key must not be sent in plain text to {public_address(self.target)}: "
                "set TLS credentials (tls_ca_file), or use a loopback or unix: target"
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of a call; empty without a credential.

        Raises:
            SightlineError: UNAUTHENTICATED, `API_KEY_FILE_UNREADABLE`.
        """
        credential = self.api_key
        if self.api_key_file is not None:
            credential = _read(self.api_key_file)
        return (("authorization", f"Bearer {credential}"),) if credential else ()

    def explain(self, error: SightlineError, service: str, setting: str) -> SightlineError:
        """Return the error of a call; if the server lacks the method, say which service it is not.

        Args:
            error: the error.
            service: `ingest` or `inference`.
            setting: the setting or flag that names the service.
        """
        # A server of Sightline that refuses a known method has a reason of its own.
        if error.code is not grpc.StatusCode.UNIMPLEMENTED or error.reason != error.code.name:
            return error
        explained = copy.copy(error)
        explained.message = (
            f"{public_address(self.target)} answers, but is not the {service} service, or one that"
            f" is too old: set {setting} to the {service} service"
        )
        return explained

    def channel(self, options: Sequence[tuple[str, object]] = ()) -> grpc.Channel:
        """Return a new channel for use from threads, which connects on the first call.

        Of the addresses that a name has, a random one is taken; those of a target that lists them
        (`ipv4:a:1,b:1`) are tried in their order.

        A proxy of the environment (`grpc_proxy`, `https_proxy`, `http_proxy`) is not used for a
        target on this machine, nor for a credential without TLS.

        Args:
            options: gRPC channel options that extend or override `OPTIONS`.
        """
        has_key = bool(self.api_key or self.api_key_file)
        route = channel_options(self.target, plain_secret=has_key and self.credentials is None)
        order = () if self.target.startswith(_LISTS) else (_SHUFFLED,)
        merged = _merged((*route, *order, *options))
        if self.credentials is None:
            return grpc.insecure_channel(self.target, merged)
        return grpc.secure_channel(self.target, self.credentials, merged)


def _read(path: Path) -> str:
    try:
        credential = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise _unreadable(
            path, getattr(error, "strerror", "") or "its content must be ASCII"
        ) from error
    if not _is_credential(credential):
        raise _unreadable(path, "its content must be one line of printable ASCII")
    return credential


def _is_credential(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable()


def _unreadable(path: Path, problem: str) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.UNAUTHENTICATED,
        "API_KEY_FILE_UNREADABLE",
        f"api_key_file: {path} cannot be used: {problem}",
    )


def _merged(options: Sequence[tuple[str, object]]) -> list[tuple[str, object]]:
    # gRPC silently uses the first of two values for the same option.
    return list({**dict(OPTIONS), **dict(options)}.items())
