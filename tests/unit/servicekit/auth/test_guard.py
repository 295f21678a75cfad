"""The guard around a real service with all four kinds of RPC."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import grpc
import pytest
from pydantic import SecretStr

from servicekit.auth.caller import Caller, Proof, Scope, current_caller
from servicekit.auth.guard import Access, Authenticator, RequireCaller, report_open_access
from servicekit.auth.key_file import KeyFile
from servicekit.calls.interceptors import GuardInterceptor
from servicekit.calls.status import report_errors
from servicekit.errors import SightlineError, from_rpc_error
from servicekit.server_settings import ServerSettings
from servicekit.settings import SettingsError
from tests.unit.servicekit.auth.signers import AUDIENCE, SECRET, Signer, claims, jwks, shared
from tests.unit.servicekit.echo import ECHO, KINDS, Context, call, serving

UNARY = f"/{ECHO}/UnaryUnary"


class Settings(ServerSettings):
    part: ClassVar[str] = "ingest"


@pytest.fixture
def key(tmp_path: Path) -> str:
    """An API key; its file is keys.db."""
    file = KeyFile(tmp_path / "keys.db")
    return file.create("gate-1", devices=["gate-1"], scopes=[Scope.LOG])[0]


@pytest.fixture
def settings(tmp_path: Path, key: str) -> Settings:
    return Settings(
        api_keys_file=tmp_path / "keys.db", jwt_secret=SecretStr(SECRET), jwt_audience=AUDIENCE
    )


Metadata = Sequence[tuple[str, str]]


async def callers(
    settings: Settings,
    metadata: Metadata = (),
    access: Access | None = None,
    kind: str = "UnaryUnary",
) -> list[Caller]:
    """Make one call and return who the handler saw; raise SightlineError."""
    seen: list[Caller] = []

    async def act(_context: Context) -> None:
        seen.append(current_caller())

    guard = RequireCaller(Authenticator.from_settings(settings), access or {})
    interceptor = GuardInterceptor([ECHO], [report_errors, guard])
    async with (
        serving(act, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        try:
            await call(channel, kind, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
    return seen


async def refusal(
    settings: Settings, metadata: Metadata = (), access: Access | None = None
) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        await callers(settings, metadata, access)
    return caught.value


def bearer(credential: str) -> Metadata:
    return [("authorization", f"Bearer {credential}")]


async def test_handlers_of_every_kind_find_the_caller(
    settings: Settings, key: str, kind: str
) -> None:
    assert kind in KINDS
    (seen,) = await callers(settings, bearer(key), kind=kind)
    assert (seen.name, seen.proof) == ("gate-1", Proof.API_KEY)


async def test_a_token_is_as_good_as_a_key(settings: Settings) -> None:
    (seen,) = await callers(settings, [("authorization", f" bearer  {shared(claims())} ")])
    assert (seen.name, seen.proof) == ("gate-1", Proof.JWT)


async def test_without_a_credential_nobody_gets_in(settings: Settings) -> None:
    error = await refusal(settings)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")
    assert error.message.startswith("the call has no credential: send an API key or a JWT")


@pytest.mark.parametrize(
    "values", [["Basic YTpi"], ["Bearer"], ["Bearer "], [""], ["Bearer a", "Bearer a"]]
)
async def test_a_credential_of_another_shape_is_refused(
    settings: Settings, values: list[str]
) -> None:
    error = await refusal(settings, [("authorization", value) for value in values])
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MALFORMED")


async def test_only_what_is_configured_is_taken(tmp_path: Path, key: str) -> None:
    only_keys = Settings(api_keys_file=tmp_path / "keys.db")
    only_tokens = Settings(jwt_secret=SecretStr(SECRET))
    for settings, credential in ((only_keys, shared(claims())), (only_tokens, key)):
        error = await refusal(settings, bearer(credential))
        assert error.code is grpc.StatusCode.UNAUTHENTICATED
        assert error.reason == "CREDENTIAL_KIND_NOT_ACCEPTED"


async def test_a_method_asks_for_its_scope(settings: Settings, key: str) -> None:
    await callers(settings, bearer(key), {UNARY: Scope.LOG})
    error = await refusal(settings, bearer(key), {UNARY: Scope.READ})
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


async def test_an_open_method_asks_for_nothing(settings: Settings) -> None:
    (seen,) = await callers(settings, [("authorization", "rubbish")], {UNARY: None})
    assert seen.proof is Proof.ANONYMOUS


async def test_where_nothing_is_configured_everyone_gets_in_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    (seen,) = await callers(Settings(), bearer("whatever"), {UNARY: Scope.READ})
    assert seen.proof is Proof.ANONYMOUS
    assert seen.connection.startswith("ipv4:127.0.0.1:")
    report_open_access(Settings(listen="127.0.0.1:0"), "127.0.0.1:50051")
    report_open_access(Settings(listen="0.0.0.0:0"), "0.0.0.0:50052")
    report_open_access(Settings(jwt_secret=SecretStr("s" * 32)), "127.0.0.1:50053")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "whoever reaches 127.0.0.1:50051 may do everything" in caplog.text
    assert "whoever reaches 0.0.0.0:50052 may do everything" in caplog.text


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"api_keys_file": "missing.db"}, "api_keys_file: .*does not exist: `sightline keys"),
        ({"jwt_jwks": "missing.json", "jwt_audience": "a"}, "jwt_jwks: .*cannot be read: No such"),
        ({"jwt_jwks": "bad.json", "jwt_audience": "a"}, "jwt_jwks: .*bad.json is no JWKS"),
    ],
)
def test_a_file_that_cannot_be_used_names_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{}")
    with pytest.raises(SettingsError, match=complaint):
        Authenticator.from_settings(Settings.model_validate(given))


async def test_keys_of_a_file_are_found(tmp_path: Path) -> None:
    signer = Signer.es256("a")
    (tmp_path / "jwks.json").write_text(jwks(signer))
    settings = Settings(jwt_jwks=str(tmp_path / "jwks.json"), jwt_audience=AUDIENCE)
    (seen,) = await callers(settings, bearer(signer.sign(claims())))
    assert seen.name == "gate-1"
