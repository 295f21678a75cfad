"""The guard that authenticates callers and checks their scopes."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc

from servicekit.addresses import stays_here
from servicekit.auth import api_keys
from servicekit.auth.caller import Caller, Proof, Scope, anonymous, set_caller, unauthenticated
from servicekit.auth.key_file import KeyFileError, KeyReader
from servicekit.auth.recheck import rechecked
from servicekit.server_settings import ServerSettings
from servicekit.settings import SettingsError

if TYPE_CHECKING:
    from servicekit.auth.jwks import KeySource
    from servicekit.auth.tokens import TokenVerifier

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]
Access = Mapping[str, Scope | None]
"""Full methods and their required scopes; None: open to everyone. A method that is not listed
needs a credential and no scope."""
_MAY_END = (Proof.API_KEY, Proof.JWT)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Authenticator:
    """The configured ways of authentication; without any, every caller is anonymous.

    A bearer credential takes precedence over a certificate: a gateway may send the token of a
    device behind it. An invalid bearer credential is refused, whatever the certificate is.

    Attributes:
        keys: API keys; None: they are not configured.
        tokens: JWTs; None: they are not configured.
        certificates: True if mutual TLS is configured.
        certificate_is_device: see `certified`.
    """

    keys: KeyReader | None = None
    tokens: "TokenVerifier | None" = None
    certificates: bool = False
    certificate_is_device: bool = True

    @classmethod
    def from_settings(cls, settings: ServerSettings) -> Self:
        """Return the ways that the settings configure.

        Raises:
            SettingsError: a file cannot be used.
        """
        return cls(
            _key_reader(settings.api_keys_file),
            _token_verifier(settings),
            _takes_certificates(settings),
            settings.tls_client_is_device,
        )

    async def authenticate(self, context: _Context) -> Caller:
        """Return the caller of a call.

        Raises:
            SightlineError: UNAUTHENTICATED; UNAVAILABLE: the credential cannot be verified now.
        """
        takes_bearer = self.keys is not None or self.tokens is not None
        if takes_bearer and (credential := _bearer(context.invocation_metadata() or ())):
            return await self._by_bearer(credential)
        if self.certificates:
            from servicekit.auth.certificates import certified

            return certified(context.auth_context(), is_device=self.certificate_is_device)
        if takes_bearer:
            raise unauthenticated(
                "CREDENTIAL_MISSING",
                "the call has no credential: send an API key or a JWT in the metadata "
                "`authorization: Bearer ...` (on a device: the setting api_key_file)",
            )
        return anonymous(context.peer())

    async def _by_bearer(self, credential: str) -> Caller:
        if credential.startswith(api_keys.PREFIX):
            if self.keys is not None:
                return api_keys.check(credential, self.keys.current(), datetime.now(UTC))
        elif self.tokens is not None:
            return await self.tokens.authenticate(credential)
        raise unauthenticated(
            "CREDENTIAL_KIND_NOT_ACCEPTED", "this server does not accept credentials of this kind"
        )


def report_open_access(settings: ServerSettings, address: str) -> None:
    """Log a message if no credentials are configured.

    Args:
        settings: the settings of the server.
        address: the bound address, with its real port.
    """
    if (
        settings.api_keys_file
        or settings.jwt_secret
        or settings.jwt_jwks
        or settings.tls_client_ca_file
    ):
        return
    logger.log(
        logging.INFO if stays_here(settings.listen) else logging.WARNING,
        "no credentials are configured: whoever reaches %s may do everything; to require them, set "
        "api_keys_file, jwt_secret, jwt_jwks or tls_client_ca_file",
        address,
    )


class RequireCaller:
    """Guard that refuses calls without valid credentials or without the required scope.

    A running call is ended within seconds when its credential is revoked or expires.

    Args:
        authenticator: authenticates the caller.
        access: the required scope of each method.
    """

    def __init__(self, authenticator: Authenticator, access: Access) -> None:
        self._authenticator = authenticator
        self._access = access

    async def __call__(
        self, method: str, context: _Context, proceed: Callable[[], Awaitable[T]]
    ) -> T:
        """Raise SightlineError UNAUTHENTICATED, PERMISSION_DENIED or UNAVAILABLE."""
        if method in self._access and self._access[method] is None:
            return await proceed()
        caller = await self._authenticator.authenticate(context)
        set_caller(caller)
        scope = self._access.get(method)
        if scope is not None:
            caller.require_scope(scope)
        if caller.proof not in _MAY_END:
            return await proceed()
        async with rechecked(lambda: self._authenticator.authenticate(context)):
            return await proceed()


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the credential; None: there is no `authorization`.

    Raises:
        SightlineError: UNAUTHENTICATED; there are several, or its scheme is not `Bearer`.
    """
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        return None
    # Some clients, such as perf_analyzer, send the blank after the colon as part of the value.
    scheme, _, credential = str(values[0]).strip().partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not credential.strip():
        raise unauthenticated(
            "CREDENTIAL_MALFORMED", "metadata `authorization` must be one `Bearer <API key or JWT>`"
        )
    return credential.strip()


def _key_reader(path: Path | None) -> KeyReader | None:
    if path is None:
        return None
    try:
        return KeyReader(path)
    except KeyFileError as error:
        raise SettingsError(f"api_keys_file: {error}") from error


# What reads certificates and tokens, and the cryptography below it, takes longer to import than all
# of this package: a server without them starts without it, one with them has it before it listens.
def _takes_certificates(settings: ServerSettings) -> bool:
    if settings.tls_client_ca_file is None:
        return False
    import_module("servicekit.auth.certificates")
    return True


def _token_verifier(settings: ServerSettings) -> "TokenVerifier | None":
    if settings.jwt_secret is None and not settings.jwt_jwks:
        return None
    from servicekit.auth.tokens import TokenVerifier

    secret, keys = settings.jwt_secret, _key_source(settings.jwt_jwks)
    return TokenVerifier(
        secret.get_secret_value().encode() if secret else None,
        keys,
        settings.jwt_audience or None,
        settings.jwt_issuer or None,
        settings.jwt_leeway_seconds,
        settings.jwt_devices_claim,
    )


def _key_source(place: str) -> "KeySource | None":
    if not place:
        return None
    from servicekit.auth.jwks import JwksFile, JwksUrl

    if "://" in place:
        return JwksUrl(place)
    try:
        return JwksFile(Path(place))
    except OSError as error:
        raise SettingsError(f"jwt_jwks: {place} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"jwt_jwks: {place} {error}") from error
