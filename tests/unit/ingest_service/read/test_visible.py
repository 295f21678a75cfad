import grpc
import pytest

from ingest_service.read.visible import visible
from ingest_service.store.protocol import Filter
from servicekit.auth.caller import ALL_SCOPES, ANONYMOUS, Caller, Devices, Proof
from servicekit.errors import SightlineError


def caller(*patterns: str) -> Caller:
    return Caller("c", Proof.API_KEY, Devices.parse(patterns), ALL_SCOPES)


def refusal(filter_: Filter, caller_: Caller) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        visible(filter_, caller_)
    return caught.value


@pytest.mark.parametrize("caller_", [ANONYMOUS, caller("*"), caller("a", "*")])
def test_who_may_see_everything_does(caller_: Caller) -> None:
    for filter_ in (Filter(), Filter(device_ids=("a", "b"), source="cloud")):
        assert visible(filter_, caller_) is filter_


def test_an_empty_filter_means_the_callers_own_devices() -> None:
    assert visible(Filter(source="cloud"), caller("b", "a")) == Filter(
        device_ids=("a", "b"), source="cloud"
    )


def test_another_device_is_refused_even_beside_an_own_one() -> None:
    error = refusal(Filter(device_ids=("a", "x")), caller("a"))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "DEVICE_NOT_ALLOWED")
    assert error.metadata == {"device_id": "x"}


def test_devices_of_a_prefix_must_be_named() -> None:
    filter_ = Filter(device_ids=("line-1", "a"))
    assert visible(filter_, caller("line-*", "a")) is filter_
    error = refusal(Filter(), caller("line-*", "a"))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "DEVICE_FILTER_REQUIRED"
    assert error.violations[0].field == "filter.device_ids"


def test_who_has_no_device_sees_nothing() -> None:
    assert refusal(Filter(), caller()).reason == "DEVICE_NOT_ALLOWED"
