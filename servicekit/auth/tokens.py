"""Verification of JSON Web Tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.exceptions import InvalidSubjectError

from servicekit.auth.caller import (
    MAX_NAME_BYTES,
    Caller,
    Devices,
    Proof,
    Scope,
    is_name,
    unauthenticated,
)
from servicekit.auth.jwks import KeySource
from servicekit.errors import SightlineError

_SHARED = "HS256"
_PUBLIC = ("RS256", "ES256")
_MAX_DEVICES = 1000
_REFUSALS: tuple[tuple[type[jwt.PyJWTError], str, str], ...] = (
    (jwt.ExpiredSignatureError, "TOKEN_EXPIRED", "the token has expired"),
    (jwt.ImmatureSignatureError, "TOKEN_NOT_YET_VALID", "the token is not valid yet"),
    (jwt.InvalidAudienceError, "TOKEN_AUDIENCE_WRONG", "the token is for another audience"),
    (jwt.InvalidIssuerError, "TOKEN_ISSUER_WRONG", "the token is of another issuer"),
    (jwt.InvalidAlgorithmError, "TOKEN_ALGORITHM_NOT_ALLOWED", "the token's alg is not allowed"),
    (jwt.InvalidKeyError, "TOKEN_KEY_UNKNOWN", "the token's key is not known here, or weak"),
    (jwt.InvalidSignatureError, "TOKEN_SIGNATURE_WRONG", "the token's signature is wrong"),
    (InvalidSubjectError, "TOKEN_CLAIM_INVALID", "the claim sub must be a text"),
)
"""Reason and message of each of PyJWT's errors; the first match counts."""


@dataclass(frozen=True, slots=True)
class TokenVerifier:
    """A verifier of tokens.

    Attributes:
        secret: for HS256; None: such tokens are refused.
        keys: for RS256 and ES256; None: such tokens are refused.
        audience: one of the token's `aud` must be this; None: it must have none.
        issuer: the token's `iss` must be this; None: it may be any.
        leeway: allowed difference of clocks, s.
        devices_claim: the claim that lists devices, as `Devices.parse` takes them.
    """

    secret: bytes | None
    keys: KeySource | None
    audience: str | None = None
    issuer: str | None = None
    leeway: float = 0.0
    devices_claim: str = "devices"

    async def authenticate(self, token: str) -> Caller:
        """Return the caller of a token.

        Raises:
            SightlineError: UNAUTHENTICATED, the token is invalid; UNAVAILABLE,
                `JWKS_UNAVAILABLE`, the keys cannot be fetched now.
        """
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key = await self._key(header)
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self.audience,
                issuer=self.issuer,
                leeway=self.leeway,
                # Short keys can be guessed; a token without an end cannot be withdrawn.
                options={"require": ["exp", "sub"], "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise _refusal(error) from error
        return self._caller(claims)

    async def _key(self, header: Mapping[str, Any]) -> tuple[str, jwt.PyJWK | bytes]:
        """Return the key that the header names, and the only algorithm allowed for it.

        The configuration decides which algorithm belongs to which key, so a token cannot make the
        server use a public key as a secret.
        """
        algorithm = header.get("alg")
        if algorithm == _SHARED and self.secret is not None:
            return algorithm, self.secret
        if algorithm not in _PUBLIC or self.keys is None:
            raise jwt.InvalidAlgorithmError
        key = await self.keys.find(header.get("kid"), algorithm)
        if key is None:
            raise jwt.InvalidKeyError
        return algorithm, key

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        name = claims["sub"]
        if not is_name(name):
            raise _bad_claim("sub", f"must be 1 to {MAX_NAME_BYTES} bytes of UTF-8")
        words = {*_words(claims, "scope"), *_words(claims, "scopes")}
        scopes = frozenset(scope for scope in Scope if scope in words)
        return Caller(name, Proof.JWT, self._devices(claims, name), scopes)

    def _devices(self, claims: Mapping[str, Any], name: str) -> Devices:
        if self.devices_claim not in claims:
            return Devices.only(name)
        patterns = _words(claims, self.devices_claim)
        if len(patterns) > _MAX_DEVICES:
            raise _bad_claim(self.devices_claim, f"must be at most {_MAX_DEVICES} devices")
        try:
            return Devices.parse(patterns)
        except ValueError as error:
            raise _bad_claim(self.devices_claim, str(error)) from error


def _words(claims: Mapping[str, Any], claim: str) -> list[str]:
    """Return the claim's words: a list of texts, or one text with spaces between them."""
    value = claims.get(claim, "")
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _bad_claim(claim, "must be a list of texts, or a text with spaces between its words")
    return words


def _refusal(error: jwt.PyJWTError) -> SightlineError:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return unauthenticated(
            "TOKEN_CLAIM_MISSING", f"the token must have the claim {error.claim}"
        )
    for kind, reason, message in _REFUSALS:
        if isinstance(error, kind):
            return unauthenticated(reason, message)
    return unauthenticated("TOKEN_MALFORMED", "the token is no JWT that can be read")


def _bad_claim(claim: str, rule: str) -> SightlineError:
    return unauthenticated("TOKEN_CLAIM_INVALID", f"the token's claim {claim} {rule}")
