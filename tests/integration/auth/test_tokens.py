"""JWTs on real services: a secret, a JWKS file that is replaced, and one behind a URL."""

import os
from pathlib import Path

import grpc
import pytest

from servicekit.errors import SightlineError
from servicekit.terminal import CommandError
from sightline.cli.processes import ServiceProcess
from tests.integration.auth.services import Client, ingest, refusal, serving
from tests.unit.edge.samples import eventually
from tests.unit.servicekit.auth.issuer import Issuer
from tests.unit.servicekit.auth.signers import AUDIENCE, SECRET, Signer, claims, jwks, shared


def outcome(service: ServiceProcess, token: str) -> str:
    try:
        Client(service, token).log("gate-1")
    except SightlineError as error:
        return error.reason
    return "logged"


def test_a_secret_from_a_file(tmp_path: Path, colours: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "sightline_inference_jwt_secret").write_text(SECRET + "\n")
    token = shared(claims(aud=None, scope="infer"))
    os.environ["SIGHTLINE_SECRETS_DIR"] = str(secrets)
    try:
        process = ServiceProcess(
            "inference_service",
            ["--listen", "127.0.0.1:0", "--model-repository", str(colours)],
        )
    finally:
        del os.environ["SIGHTLINE_SECRETS_DIR"]
    with process as service:
        Client(service, token).infer()
        expired = shared(claims(aud=None, scope="infer", exp=1))
        assert refusal(Client(service, expired).infer).reason == "TOKEN_EXPIRED"


def test_keys_of_a_file_that_is_replaced_while_the_server_runs(tmp_path: Path) -> None:
    old, new = Signer.es256("old"), Signer.rs256("new")
    path = tmp_path / "jwks.json"
    path.write_text(jwks(old))
    with ingest(tmp_path, "--jwt-jwks", str(path), "--jwt-audience", AUDIENCE) as service:
        assert outcome(service, old.sign(claims())) == "logged"
        assert outcome(service, new.sign(claims())) == "TOKEN_KEY_UNKNOWN"
        assert refusal(Client(service, old.sign(claims())).log, "gate-2").reason == (
            "DEVICE_NOT_ALLOWED"
        )
        line = Client(service, old.sign(claims(devices=["line-*"])))
        assert line.log("line-1").accepted == 1
        (tmp_path / "next").write_text(jwks(new))
        (tmp_path / "next").replace(path)
        assert eventually(lambda: outcome(service, new.sign(claims())) == "logged")
        assert outcome(service, old.sign(claims())) == "TOKEN_KEY_UNKNOWN"


def test_keys_of_a_url_that_is_down_at_first(tmp_path: Path) -> None:
    signer = Signer.es256("a")
    issuer = Issuer(jwks(signer))
    issuer.status = 503
    try:
        flags = ["--jwt-jwks", issuer.url, "--jwt-audience", AUDIENCE]
        with ingest(tmp_path, *flags) as service:
            error = refusal(Client(service, signer.sign(claims())).log, "gate-1")
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.reason == "JWKS_UNAVAILABLE"
            assert error.retryable
            assert error.retry_after is not None
            issuer.status = 200
            assert eventually(lambda: outcome(service, signer.sign(claims())) == "logged", 30)
            impostor = Signer.es256("a")
            assert outcome(service, impostor.sign(claims())) == "TOKEN_SIGNATURE_WRONG"
            for number in range(20):
                assert outcome(service, signer.sign(claims(), kid=str(number))) == (
                    "TOKEN_KEY_UNKNOWN"
                )
        assert issuer.asked <= 4  # two fetches, and one more at most for each 10 s
    finally:
        issuer.close()


def test_a_start_without_the_keys_it_names_is_refused(tmp_path: Path) -> None:
    flags = ["--database", str(tmp_path / "log.duckdb"), "--jwt-jwks", str(tmp_path / "none.json")]
    with (
        pytest.raises(CommandError, match="exit code 2"),
        serving("ingest_service", tmp_path, *flags, "--jwt-audience", "a"),
    ):
        pass
    assert "jwt_jwks: " in (tmp_path / "stderr.log").read_text()
