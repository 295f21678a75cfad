"""Guard that lets in only who has shown who it is, and may do what it asks for."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from servicekit.addresses import stays_here
from servicekit.auth import api_keys
from servicekit.auth.caller import Caller, Proof, Scope, anonymous, set_caller, unauthenticated
from servicekit.auth.certificates import certified
from servicekit.auth.jwks import JwksFile, JwksUrl, KeySource
from servicekit.auth.key_file import KeyFileError, KeyReader
from servicekit.auth.recheck import rechecked
from servicekit.auth.tokens import TokenVerifier
from servicekit.server_settings import ServerSettings
from servicekit.settings import SettingsError

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]
Access = Mapping[str, Scope | None]
"""Full methods and the scope that each needs; None: open to everyone. A method that is not among
them needs a credential and no scope."""
_MAY_END = (Proof.API_KEY, Proof.JWT)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Finds out who is calling, in the ways that are configured; in none: everyone is anonymous.

    A bearer credential comes before a certificate: a gateway's certificate may carry the token of a
    device behind it. One that is not good is refused, whatever the certificate.

    Attributes:
        keys: API keys; None: they are not configured.
        tokens: JWTs; None: they are not configured.
        certificates: whether mutual TLS is configured.
        certificate_is_device: see `certified`.
    """

    keys: KeyReader | None = None
    tokens: TokenVerifier | None = None
    certificates: bool = False
    certificate_is_device: bool = True

    @classmethod
    def from_settings(cls, settings: ServerSettings) -> Self:
        """Return what the settings ask for; say so in the log if they ask for nothing.

        Raises:
            SettingsError: a file cannot be used.
        """
        made = cls(
            _key_reader(settings.api_keys_file),
            _token_verifier(settings),
            settings.tls_client_ca_file is not None,
            settings.tls_client_is_device,
        )
        if made == cls(certificate_is_device=settings.tls_client_is_device):
            logger.log(
                logging.INFO if stays_here(settings.listen) else logging.WARNING,
                "no credentials are configured: whoever reaches %s may do everything",
                settings.listen,
            )
        return made

    async def authenticate(self, context: _Context) -> Caller:
        """Return who makes the call.

        Raises:
            SightlineError: UNAUTHENTICATED; UNAVAILABLE: nobody can tell now.
        """
        takes_bearer = self.keys is not None or self.tokens is not None
        if takes_bearer and (credential := _bearer(context.invocation_metadata() or ())):
            return await self._by_bearer(credential)
        if self.certificates:
            return certified(context.auth_context(), is_device=self.certificate_is_device)
        if takes_bearer:
            raise unauthenticated(
                "CREDENTIAL_MISSING",
                "the call must bring metadata `authorization: Bearer ...` with an API key or a JWT",
            )
        return anonymous(context.peer())

    async def _by_bearer(self, credential: str) -> Caller:
        if credential.startswith(api_keys.PREFIX):
            if self.keys is not None:
                return api_keys.check(credential, self.keys.current(), datetime.now(UTC))
        elif self.tokens is not None:
            return await self.tokens.authenticate(credential)
        raise unauthenticated(
            "CREDENTIAL_KIND_NOT_ACCEPTED", "this server takes no such credential"
        )


class RequireCaller:
    """Guard that refuses calls without a good credential, or without the scope they need.

    A call that lasts is ended within seconds when its credential is revoked or expires.

    Args:
        authenticator: finds out who is calling.
        access: which scope each method needs.
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
        SightlineError: UNAUTHENTICATED; there are several, or it is none of `Bearer`.
    """
    given = [value for key, value in metadata if key == "authorization"]
    if not given:
        return None
    # Some clients, perf_analyzer among them, send the blank after the colon as well.
    scheme, _, credential = str(given[0]).strip().partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer" or not credential.strip():
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


def _token_verifier(settings: ServerSettings) -> TokenVerifier | None:
    secret, keys = settings.jwt_secret, _key_source(settings.jwt_jwks)
    if secret is None and keys is None:
        return None
    return TokenVerifier(
        secret.get_secret_value().encode() if secret else None,
        keys,
        settings.jwt_audience or None,
        settings.jwt_issuer or None,
        settings.jwt_leeway_seconds,
        settings.jwt_devices_claim,
    )


def _key_source(place: str) -> KeySource | None:
    if not place:
        return None
    if "://" in place:
        return JwksUrl(place)
    try:
        return JwksFile(Path(place))
    except OSError as error:
        raise SettingsError(f"jwt_jwks: {place} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"jwt_jwks: {place} {error}") from error
