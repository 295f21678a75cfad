"""Mutual TLS: the certificate's name is the device."""

import uuid
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from sightline.cli.processes import ServiceProcess
from tests.integration.auth.authority import Authority
from tests.integration.auth.conftest import MakeKey
from tests.integration.auth.services import Client, ingest, refusal, serving


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def flags(tmp_path: Path, authority: Authority) -> list[str]:
    certificate, private = authority.issue("server")
    for name, pem in (("ca", authority.pem), ("cert", certificate), ("key", private)):
        (tmp_path / f"{name}.pem").write_bytes(pem)
    return [
        *("--tls-cert-file", str(tmp_path / "cert.pem")),
        *("--tls-key-file", str(tmp_path / "key.pem")),
        *("--tls-client-ca-file", str(tmp_path / "ca.pem")),
    ]


def shown(
    service: ServiceProcess,
    authority: Authority,
    *common_names: str,
    names: Sequence[x509.GeneralName] = (),
    credential: str | None = None,
) -> Client:
    certificate, private = authority.issue(*common_names, names=names)
    trust = grpc.ssl_channel_credentials(authority.pem, private, certificate)
    return Client(service, credential, trust)


def test_a_certificate_logs_and_reads_as_its_own_device_only(
    tmp_path: Path, authority: Authority, flags: list[str]
) -> None:
    with ingest(tmp_path, *flags) as service:
        gate = shown(service, authority, "gate-1")
        assert gate.log("gate-1").accepted == 1
        assert refusal(gate.log, "gate-2").reason == "DEVICE_NOT_ALLOWED"
        assert shown(service, authority, "gate-2").stats() == {}
        assert gate.stats() == {"gate-1": 1}
        assert refusal(shown(service, authority, "*").log, "gate-1").reason == "DEVICE_NOT_ALLOWED"


def test_a_gateway_logs_as_every_device(
    tmp_path: Path, authority: Authority, flags: list[str]
) -> None:
    with ingest(tmp_path, *flags, "--no-tls-client-is-device") as service:
        gateway = shown(service, authority, "hall-3")
        assert gateway.log("gate-1").accepted == 1
        assert gateway.log("gate-2").accepted == 1
        assert gateway.stats() == {"gate-1": 1, "gate-2": 1}


def test_a_key_comes_before_the_certificate_and_a_bad_one_is_refused(
    tmp_path: Path, authority: Authority, flags: list[str], key: MakeKey
) -> None:
    gate = key("gate-1")
    keys = ["--api-keys-file", str(tmp_path / "keys.db")]
    with ingest(tmp_path, *flags, *keys) as service:
        assert shown(service, authority, "hall-3", credential=gate).log("gate-1").accepted == 1
        assert shown(service, authority, "hall-3").log("hall-3").accepted == 1
        bad = shown(service, authority, "hall-3", credential=gate[:-1] + "~")
        assert refusal(bad.log, "hall-3").reason == "API_KEY_UNKNOWN"


def test_without_a_certificate_nobody_gets_in(
    tmp_path: Path, authority: Authority, flags: list[str]
) -> None:
    with ingest(tmp_path, *flags) as service:
        client = Client(service, trust=grpc.ssl_channel_credentials(authority.pem))
        assert refusal(client.log, "gate-1").code is grpc.StatusCode.UNAVAILABLE


def test_a_spiffe_uri_is_the_device_of_its_name(
    tmp_path: Path, authority: Authority, flags: list[str]
) -> None:
    with ingest(tmp_path, *flags) as service:
        one, other = (spiffe(service, authority, name) for name in ("gate-1", "gate-2"))
        assert one.log("spiffe://fleet.example/gate-1").accepted == 1
        assert one.stats() == {"spiffe://fleet.example/gate-1": 1}
        assert other.stats() == {}
        assert refusal(other.log, "spiffe://fleet.example/gate-1").reason == "DEVICE_NOT_ALLOWED"
        assert refusal(one.log, "gate-1").reason == "DEVICE_NOT_ALLOWED"


def test_spiffe_callers_share_no_answers(
    tmp_path: Path, authority: Authority, flags: list[str], colours: Path
) -> None:
    models = ["--model-repository", str(colours)]
    with serving("inference_service", tmp_path, *flags, *models) as service:
        one, other = (spiffe(service, authority, name) for name in ("gate-1", "gate-2"))
        key = str(uuid.uuid4())
        assert [one.infer(key), one.infer(key), other.infer(key)] == [False, True, False]


def test_a_certificate_without_a_good_name_gets_nothing(
    tmp_path: Path, authority: Authority, flags: list[str]
) -> None:
    with ingest(tmp_path, *flags) as service:
        assert shown(service, authority, "gate-1").log("gate-1").accepted == 1
        nameless = [
            shown(service, authority, "gate-1\0.evil"),
            shown(service, authority, ""),
            shown(service, authority, names=[x509.DNSName("gate-1\0.evil")]),
            shown(service, authority, names=[x509.RFC822Name("gate-1@fleet.example")]),
            shown(service, authority),
        ]
        for client in nameless:
            assert refusal(client.stats).reason == "CERTIFICATE_NAMELESS"
            assert refusal(client.log, "gate-1").reason == "CERTIFICATE_NAMELESS"


def spiffe(service: ServiceProcess, authority: Authority, name: str) -> Client:
    uri = x509.UniformResourceIdentifier(f"spiffe://fleet.example/{name}")
    return shown(service, authority, names=[uri])
