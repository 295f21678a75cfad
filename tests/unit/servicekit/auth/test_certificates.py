import grpc
import pytest

from servicekit.auth.caller import ALL_SCOPES, Devices, Proof
from servicekit.auth.certificates import certified
from servicekit.errors import SightlineError


def test_a_dns_name_comes_before_the_common_name() -> None:
    names = {"x509_common_name": [b"cn"], "peer_dns": [b"gate-1.example", b"other"]}
    caller = certified(names, is_device=True)
    assert (caller.name, caller.proof) == ("gate-1.example", Proof.MTLS)
    assert caller.devices == Devices.only("gate-1.example")
    assert caller.scopes == ALL_SCOPES


def test_other_names_do_not_count() -> None:
    names = {"x509_common_name": [b"cn"], "peer_ip": [b"127.0.0.1"], "peer_uri": [b"spiffe://a/b"]}
    assert certified(names, is_device=True).name == "cn"


def test_a_gateway_may_speak_for_every_device() -> None:
    caller = certified({"x509_common_name": [b"hall-3"]}, is_device=False)
    assert caller.name == "hall-3"
    assert caller.devices.everything


def test_a_wildcard_certificate_is_no_pattern() -> None:
    caller = certified({"peer_dns": [b"*"]}, is_device=True)
    assert "gate-1" not in caller.devices
    assert not caller.devices.everything


def test_a_certificate_without_a_name_is_nobody() -> None:
    with pytest.raises(SightlineError) as caught:
        certified({"transport_security_type": [b"ssl"]}, is_device=True)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.reason == "CERTIFICATE_NAMELESS"
