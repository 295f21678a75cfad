"""Issuers of tokens: keys, their JWKS, and JWTs that they sign."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

SECRET = "0123456789abcdef0123456789abcdef"
AUDIENCE = "sightline"


def claims(**changes: object) -> dict[str, object]:
    """Good claims; a change to None leaves one out."""
    now = int(time.time())
    made = {"sub": "gate-1", "aud": AUDIENCE, "exp": now + 600, "scope": "log infer", **changes}
    return {name: value for name, value in made.items() if value is not None}


def shared(content: Mapping[str, object], secret: str | bytes = SECRET, alg: str = "HS256") -> str:
    """A token that a secret signs."""
    return jwt.encode(dict(content), secret, algorithm=alg)


@dataclass(frozen=True)
class Signer:
    """A private key with a name."""

    kid: str
    algorithm: str
    key: Any

    @classmethod
    def es256(cls, kid: str) -> "Signer":
        return cls(kid, "ES256", ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def rs256(cls, kid: str, bits: int = 2048) -> "Signer":
        return cls(kid, "RS256", rsa.generate_private_key(public_exponent=65537, key_size=bits))

    def sign(self, content: Mapping[str, object], *, kid: str | None = "") -> str:
        """A token; `kid`: another name in its header, None: none."""
        name = self.kid if kid == "" else kid
        headers = {} if name is None else {"kid": name}
        return jwt.encode(dict(content), self.key, algorithm=self.algorithm, headers=headers)

    @property
    def jwk(self) -> dict[str, Any]:
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        public: dict[str, Any] = json.loads(algorithm.to_jwk(self.key.public_key()))
        return {**public, "kid": self.kid, "use": "sig"}


def jwks(*signers: Signer) -> str:
    return json.dumps({"keys": [signer.jwk for signer in signers]})
