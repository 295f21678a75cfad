import base64
import json
import time
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicekit.auth.caller import Caller, Devices, Proof, Scope
from servicekit.auth.jwks import JwksFile
from servicekit.auth.tokens import TokenVerifier
from servicekit.errors import SightlineError
from tests.unit.servicekit.auth.signers import AUDIENCE, SECRET, Signer, claims, jwks, shared

EC, RSA = Signer.es256("ec-1"), Signer.rs256("rsa-1")


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> TokenVerifier:
    path = tmp_path_factory.mktemp("jwks") / "jwks.json"
    path.write_text(jwks(EC, RSA))
    return TokenVerifier(SECRET.encode(), JwksFile(path), AUDIENCE, None, 5.0)


async def refusal(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(SightlineError) as caught:
        await verifier.authenticate(token)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert SECRET not in str(caught.value)
    return caught.value.reason


def unsigned(header: dict[str, object], content: dict[str, object]) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in (header, content)
    ]
    return ".".join([*parts, ""])


@pytest.mark.parametrize("sign", [shared, EC.sign, RSA.sign], ids=["HS256", "ES256", "RS256"])
async def test_a_good_token_speaks_for_its_subject(verifier: TokenVerifier, sign: object) -> None:
    assert callable(sign)
    assert await verifier.authenticate(sign(claims())) == Caller(
        "gate-1", Proof.JWT, Devices.only("gate-1"), frozenset([Scope.LOG, Scope.INFER])
    )


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"devices": ["a", "line-*"]}, Devices.parse(["a", "line-*"])),
        ({"devices": "a b"}, Devices.parse(["a", "b"])),
        ({"devices": "*"}, Devices.parse(["*"])),
        ({"devices": []}, Devices()),
        ({"sub": "*"}, Devices.only("*")),  # a subject is a name and no pattern
    ],
)
async def test_the_devices_claim(
    verifier: TokenVerifier, changes: dict[str, object], devices: Devices
) -> None:
    assert (await verifier.authenticate(shared(claims(**changes)))).devices == devices


@pytest.mark.parametrize(
    ("changes", "scopes"),
    [
        ({"scope": "openid read", "scopes": ["log"]}, {Scope.READ, Scope.LOG}),
        ({"scope": ["infer"]}, {Scope.INFER}),
        ({"scope": None}, set()),
        ({"scope": "LOG root *"}, set()),
        ({"scope": "admin"}, {Scope.ADMIN}),
    ],
)
async def test_the_scope_claims(
    verifier: TokenVerifier, changes: dict[str, object], scopes: set[Scope]
) -> None:
    assert (await verifier.authenticate(shared(claims(**changes)))).scopes == scopes


async def test_the_name_of_the_devices_claim_is_a_setting() -> None:
    verifier = TokenVerifier(SECRET.encode(), None, AUDIENCE, devices_claim="cameras")
    caller = await verifier.authenticate(shared(claims(cameras="c-*", devices="*")))
    assert caller.devices == Devices.parse(["c-*"])


NOW = int(time.time())  # when this was imported, which may be long before a test runs
YEAR = 365 * 24 * 3600


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": NOW - 60}, "TOKEN_EXPIRED"),
        ({"exp": None}, "TOKEN_CLAIM_MISSING"),
        ({"exp": "soon"}, "TOKEN_MALFORMED"),
        ({"nbf": NOW + YEAR}, "TOKEN_NOT_YET_VALID"),
        ({"iat": NOW + YEAR}, "TOKEN_NOT_YET_VALID"),
        ({"aud": "other"}, "TOKEN_AUDIENCE_WRONG"),
        ({"aud": ["other"]}, "TOKEN_AUDIENCE_WRONG"),
        ({"aud": None}, "TOKEN_CLAIM_MISSING"),
        ({"sub": None}, "TOKEN_CLAIM_MISSING"),
        ({"sub": ""}, "TOKEN_CLAIM_INVALID"),
        ({"sub": "x" * 257}, "TOKEN_CLAIM_INVALID"),
        ({"sub": "\ud800"}, "TOKEN_CLAIM_INVALID"),
        ({"devices": ["a*b"]}, "TOKEN_CLAIM_INVALID"),
        ({"devices": [1]}, "TOKEN_CLAIM_INVALID"),
        ({"devices": {"a": 1}}, "TOKEN_CLAIM_INVALID"),
        ({"devices": ["d"] * 1001}, "TOKEN_CLAIM_INVALID"),
        ({"scope": 7}, "TOKEN_CLAIM_INVALID"),
    ],
)
async def test_a_bad_claim_is_refused(
    verifier: TokenVerifier, changes: dict[str, object], reason: str
) -> None:
    assert await refusal(verifier, shared(claims(**changes))) == reason


async def test_a_subject_that_is_no_text_is_refused(verifier: TokenVerifier) -> None:
    key = jwt.get_algorithm_by_name("HS256")
    header, body, _ = shared(claims()).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(sub=7)).encode()).decode().rstrip("=")
    signed = f"{header}.{body}".encode()
    signature = base64.urlsafe_b64encode(key.sign(signed, SECRET.encode())).decode().rstrip("=")
    assert await refusal(verifier, f"{signed.decode()}.{signature}") == "TOKEN_CLAIM_INVALID"


async def test_clocks_may_be_a_little_apart(verifier: TokenVerifier) -> None:
    await verifier.authenticate(shared(claims(exp=int(time.time()) - 1)))
    await verifier.authenticate(shared(claims(nbf=int(time.time()) + 3)))


async def test_the_issuer_is_checked_if_one_is_configured() -> None:
    verifier = TokenVerifier(SECRET.encode(), None, AUDIENCE, "https://issuer.example")
    await verifier.authenticate(shared(claims(iss="https://issuer.example")))
    assert await refusal(verifier, shared(claims(iss="https://x.example"))) == "TOKEN_ISSUER_WRONG"
    assert await refusal(verifier, shared(claims())) == "TOKEN_CLAIM_MISSING"


async def test_without_an_audience_tokens_for_others_are_refused() -> None:
    verifier = TokenVerifier(SECRET.encode(), None)
    await verifier.authenticate(shared(claims(aud=None)))
    assert await refusal(verifier, shared(claims())) == "TOKEN_AUDIENCE_WRONG"


async def test_no_algorithm_is_no_proof(verifier: TokenVerifier) -> None:
    for alg in ("none", "None", "NONE", "", None, 7):
        token = unsigned({"alg": alg, "typ": "JWT"}, claims())
        assert await refusal(verifier, token) in {"TOKEN_ALGORITHM_NOT_ALLOWED", "TOKEN_MALFORMED"}
    assert await refusal(verifier, unsigned({}, claims())) == "TOKEN_ALGORITHM_NOT_ALLOWED"


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_a_public_key_is_not_taken_for_a_secret(tmp_path: Path) -> None:
    """The attack on verifiers that let the token choose what a key is for."""
    path = tmp_path / "jwks.json"
    path.write_text(jwks(RSA))
    public = RSA.key.public_key()
    shapes = [
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1),
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1),
        json.dumps(RSA.jwk).encode(),
        RSA.jwk["n"].encode(),
    ]
    hmac = jwt.get_algorithm_by_name("HS256")
    header, body, _ = shared(claims()).split(".")
    for secret in (None, SECRET.encode()):
        verifier = TokenVerifier(secret, JwksFile(path), AUDIENCE)
        for shape in shapes:
            signature = hmac.sign(f"{header}.{body}".encode(), shape)
            token = f"{header}.{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"
            reason = await refusal(verifier, token)
            assert reason == ("TOKEN_SIGNATURE_WRONG" if secret else "TOKEN_ALGORITHM_NOT_ALLOWED")


async def test_a_key_is_for_its_own_algorithm_only(verifier: TokenVerifier) -> None:
    assert await refusal(verifier, EC.sign(claims(), kid="rsa-1")) == "TOKEN_KEY_UNKNOWN"
    assert await refusal(verifier, shared(claims(), SECRET * 2, "HS512")) == (
        "TOKEN_ALGORITHM_NOT_ALLOWED"
    )
    no_secret = TokenVerifier(None, verifier.keys, AUDIENCE)
    assert await refusal(no_secret, shared(claims())) == "TOKEN_ALGORITHM_NOT_ALLOWED"
    no_keys = TokenVerifier(SECRET.encode(), None, AUDIENCE)
    assert await refusal(no_keys, EC.sign(claims())) == "TOKEN_ALGORITHM_NOT_ALLOWED"


async def test_a_secret_in_a_jwks_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    secret = base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")
    path.write_text(json.dumps({"keys": [EC.jwk, {"kty": "oct", "k": secret, "kid": "s"}]}))
    verifier = TokenVerifier(None, JwksFile(path), AUDIENCE)
    token = jwt.encode(claims(), SECRET, algorithm="HS256", headers={"kid": "s"})
    assert await refusal(verifier, token) == "TOKEN_ALGORITHM_NOT_ALLOWED"


async def test_another_issuers_signature_is_wrong(verifier: TokenVerifier) -> None:
    impostor = Signer.es256("ec-1")
    assert await refusal(verifier, impostor.sign(claims())) == "TOKEN_SIGNATURE_WRONG"
    assert await refusal(verifier, impostor.sign(claims(), kid="new")) == "TOKEN_KEY_UNKNOWN"
    assert await refusal(verifier, shared(claims(), "x" * 32)) == "TOKEN_SIGNATURE_WRONG"


async def test_a_changed_token_is_refused(verifier: TokenVerifier) -> None:
    header, _, signature = EC.sign(claims()).split(".")
    other = EC.sign(claims(sub="gate-2")).split(".")[1]
    assert await refusal(verifier, f"{header}.{other}.{signature}") == "TOKEN_SIGNATURE_WRONG"


async def test_a_weak_key_is_not_used(tmp_path: Path) -> None:
    weak = Signer.rs256("weak", bits=1024)
    path = tmp_path / "jwks.json"
    path.write_text(jwks(weak))
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = weak.sign(claims())
    verifier = TokenVerifier(None, JwksFile(path), AUDIENCE)
    assert await refusal(verifier, token) == "TOKEN_KEY_UNKNOWN"


async def test_a_token_without_a_key_id_needs_a_set_of_one(
    verifier: TokenVerifier, tmp_path: Path
) -> None:
    assert (await verifier.authenticate(EC.sign(claims(), kid=None))).name == "gate-1"
    path = tmp_path / "jwks.json"
    path.write_text(jwks(EC, Signer.es256("ec-2")))
    two = TokenVerifier(None, JwksFile(path), AUDIENCE)
    assert await refusal(two, EC.sign(claims(), kid=None)) == "TOKEN_KEY_UNKNOWN"


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None
)
@given(data=st.data())
async def test_rubbish_is_refused_and_nothing_else(
    verifier: TokenVerifier, data: st.DataObject
) -> None:
    good = shared(claims())
    at = data.draw(st.integers(0, len(good) - 1))
    cut = data.draw(st.integers(0, 5))
    token = good[:at] + data.draw(st.text(max_size=5)) + good[at + cut :]
    try:
        await verifier.authenticate(token)
    except SightlineError as error:
        assert error.code is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017 - it may be good, too
