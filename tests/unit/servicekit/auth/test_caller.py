import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit.auth.caller import (
    ALL_DEVICES,
    ALL_SCOPES,
    ANONYMOUS,
    Caller,
    Devices,
    Proof,
    Scope,
    anonymous,
    current_caller,
)
from servicekit.errors import SightlineError


def refused(check: object, argument: object) -> SightlineError:
    assert callable(check)
    with pytest.raises(SightlineError) as caught:
        check(argument)
    return caught.value


def test_devices_are_exact_names_and_prefixes() -> None:
    devices = Devices.parse(["gate-1", "line-*"])
    assert "gate-1" in devices
    assert "line-" in devices
    assert "line-7" in devices
    for other in ("gate-10", "gate", "GATE-1", "line", "line7", "", "line-*"[:-2]):
        assert other not in devices
    assert not devices.everything


@settings(deadline=None)
@given(st.text(min_size=1))
def test_a_star_alone_is_every_device(name: str) -> None:
    assert name in Devices.parse(["*"])
    assert name in ALL_DEVICES
    assert name not in Devices()
    assert Devices.parse(["*"]).everything


@pytest.mark.parametrize("pattern", ["", "*a", "a*b", "**", "x" * 257, "é" * 129])
def test_a_pattern_that_says_something_else_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"must be 1 to 256 bytes|may have one \*, at its end"):
        Devices.parse([pattern])


def test_a_name_is_no_pattern() -> None:
    assert "gate-1" not in Devices.only("gate*")
    assert "gate*" in Devices.only("gate*")
    assert not Devices.only("*").everything


def test_what_a_caller_may_not_do_is_named() -> None:
    caller = Caller("gate-1", Proof.JWT, Devices.only("gate-1"), frozenset([Scope.LOG]))
    caller.require_scope(Scope.LOG)
    caller.require_device("gate-1")
    error = refused(caller.require_scope, Scope.READ)
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert error.metadata == {"scope": "read"}
    error = refused(caller.require_device, "gate-2")
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "DEVICE_NOT_ALLOWED")
    assert error.metadata == {"device_id": "gate-2"}


def test_the_same_name_proved_otherwise_is_another_caller() -> None:
    made = {Caller("gate-1", proof, ALL_DEVICES, ALL_SCOPES).identity for proof in Proof}
    assert len(made) == len(Proof)


def test_fair_sharing_tells_callers_without_a_credential_apart_by_connection() -> None:
    first, second = anonymous("ipv4:127.0.0.1:1"), anonymous("ipv4:127.0.0.1:2")
    assert first.flow != second.flow
    assert first.identity == second.identity == ANONYMOUS.identity
    known = Caller("gate-1", Proof.API_KEY, ALL_DEVICES, ALL_SCOPES)
    assert known.flow == known.identity


def test_administrators_are_named_or_on_this_machine_where_nobody_needs_a_credential() -> None:
    assert Scope.ADMIN not in ALL_SCOPES, "or every certificate would have it"
    assert Scope.ADMIN in anonymous("ipv4:127.0.0.1:1").scopes
    assert Scope.ADMIN not in anonymous("ipv4:10.0.0.7:1").scopes
    error = refused(anonymous("ipv4:10.0.0.7:1").require_scope, Scope.ADMIN)
    assert error.reason == "SCOPE_MISSING"


def test_outside_of_a_call_everyone_is_anonymous() -> None:
    assert current_caller() is ANONYMOUS
