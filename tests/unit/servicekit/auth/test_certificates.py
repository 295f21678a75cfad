import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from servicekit.auth.caller import ALL_SCOPES, Caller, Devices, Proof
from servicekit.auth.certificates import certified
from servicekit.errors import SightlineError
from tests.integration.auth.authority import Authority

DNS, URI, EMAIL = x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name
SPIFFE = "spiffe://fleet.example/gate-1"
AUTHORITY = Authority()


def caller(*common_names: str, names: list[x509.GeneralName] | None = None) -> Caller:
    """Return who a certificate with these names is."""
    pem, _ = AUTHORITY.issue(*common_names, names=names or [])
    return certified({"x509_pem_cert": [pem]}, is_device=True)


def refused(*common_names: str, names: list[x509.GeneralName] | None = None) -> str:
    """Return the message with which a certificate with these names is refused."""
    with pytest.raises(SightlineError) as caught:
        caller(*common_names, names=names)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.reason == "CERTIFICATE_NAMELESS"
    return caught.value.message


def test_a_dns_name_comes_before_the_common_name() -> None:
    found = caller("cn", names=[URI(SPIFFE), DNS("gate-1.example"), DNS("other")])
    assert (found.name, found.proof) == ("gate-1.example", Proof.MTLS)
    assert found.devices == Devices.only("gate-1.example")
    assert found.scopes == ALL_SCOPES


def test_the_common_name_comes_before_a_uri_as_it_always_did() -> None:
    assert caller("cn", "cn-2", names=[URI(SPIFFE), EMAIL("a@b.example")]).name == "cn"


@pytest.mark.parametrize("uri", [SPIFFE, "urn:uuid:123e4567-e89b-42d3-a456-426614174000"])
def test_a_uri_names_a_certificate_without_dns_name_and_common_name(uri: str) -> None:
    found = caller(names=[URI(uri), EMAIL("a@b.example")])
    assert found.name == uri
    assert found.devices == Devices.only(uri)


def test_certificates_with_different_uris_are_different_callers() -> None:
    first, second = (caller(names=[URI(f"spiffe://fleet/{name}")]) for name in ("a", "b"))
    assert first.identity != second.identity


def test_a_gateway_may_speak_for_every_device() -> None:
    pem, _ = AUTHORITY.issue("hall-3")
    found = certified({"x509_pem_cert": [pem]}, is_device=False)
    assert found.name == "hall-3"
    assert found.devices.everything


def test_a_wildcard_certificate_is_no_pattern() -> None:
    found = caller(names=[DNS("*")])
    assert "gate-1" not in found.devices
    assert not found.devices.everything


def test_a_certificate_without_a_name_is_nobody() -> None:
    assert "it has none" in refused(names=[EMAIL("a@b.example")])
    assert "it has none" in refused()
    with pytest.raises(SightlineError, match="cannot be read"):
        certified({"transport_security_type": [b"ssl"]}, is_device=True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\0",
        "gate-1\0",
        "gate-1\0.evil",
        "gate-1\n",
        "gate\t1",
        " gate-1",
        "gate-1 ",
        "gate-1\u202e",  # text from right to left: looks like another name
        "gate-1\u200b",  # a blank of no width
        "g" * 257,
        "ü" * 129,
    ],
)
def test_a_malformed_common_name_is_nobody(name: str) -> None:
    assert "common name must be 1 to 256 bytes" in refused(name)
    assert "common name" in refused(name, names=[URI(SPIFFE)])  # which is not passed over


@pytest.mark.parametrize("name", ["", "gate-1\0.evil", "gate-1 ", "g" * 257])
def test_a_malformed_dns_name_is_nobody(name: str) -> None:
    assert "DNS name" in refused("gate-1", names=[DNS(name)])


@pytest.mark.parametrize(
    "uri",
    ["", "gate-1", "spiffe:", "spiffe://", "spiffe:///gate-1", f"{SPIFFE}\0x", f"{SPIFFE} x"],
)
def test_a_malformed_uri_is_nobody(uri: str) -> None:
    assert "URI" in refused(names=[URI(uri)])


def test_of_several_uris_none_counts() -> None:
    assert "it has 2 URIs" in refused(names=[URI(SPIFFE), URI("spiffe://fleet.example/gate-2")])


def test_names_of_other_alphabets_are_names() -> None:
    for name in ("Prüfstand 4", "カメラ", "g" * 256):
        assert caller(name).name == name


def test_bytes_that_are_no_text_are_nobody() -> None:
    pem, _ = AUTHORITY.issue("gate-1")
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert der.count(b"gate-1") == 1
    broken = x509.load_der_x509_certificate(der.replace(b"gate-1", b"gate-\xff"))
    with pytest.raises(SightlineError, match="cannot be read"):
        certified({"x509_pem_cert": [broken.public_bytes(Encoding.PEM)]}, is_device=True)
