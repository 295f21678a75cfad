"""Token buckets on a clock that the test moves."""

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit.auth.caller import ALL_DEVICES, ALL_SCOPES, ANONYMOUS, Caller, Proof
from servicekit.calls.limits import CallerLimits
from servicekit.errors import SightlineError
from servicekit.quotas import Quota, parse_method_limits


def caller(name: str, proof: Proof = Proof.API_KEY) -> Caller:
    return Caller(name, proof, ALL_DEVICES, ALL_SCOPES)


A, B = caller("a"), caller("b")


def charge(limits: CallerLimits, who: Caller, size: int, now: float, method: str = "") -> None:
    """Charge for a call with one message, when it begins and when its message is there."""
    limits.charge_call(who, now, method)
    limits.charge_message(who, size, now, method)


def refused(limits: CallerLimits, who: Caller, now: float, size: int = 1) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        charge(limits, who, size, now)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.reason == "RATE_LIMITED"
    return caught.value


def test_a_burst_then_the_rate() -> None:
    limits = CallerLimits(2, 3, 0)
    for _ in range(3):
        charge(limits, A, 10**9, 100.0)
    error = refused(limits, A, 100.0)
    assert error.retry_after == pytest.approx(0.5)
    assert error.quotas[0].subject == "caller:a"
    assert error.quotas[0].description == "2 messages per second, 3 at once"
    assert refused(limits, A, 100.4).retry_after == pytest.approx(0.1)
    charge(limits, A, 1, 100.5)
    refused(limits, A, 100.6)


def test_a_rest_fills_the_bucket_and_no_more() -> None:
    limits = CallerLimits(2, 3, 0)
    for at in (0.0, 0.0, 0.0, 1000.0, 1000.0, 1000.0):
        charge(limits, A, 1, at)
    refused(limits, A, 1000.0)


def test_bytes_are_counted_too() -> None:
    limits = CallerLimits(0, 20, 1000)
    charge(limits, A, 600, 0.0)
    error = refused(limits, A, 0.0, 600)
    assert error.retry_after == pytest.approx(0.2)
    assert [quota.description for quota in error.quotas] == ["1000 bytes per second, 1000 at once"]
    charge(limits, A, 400, 0.0)
    charge(limits, A, 0, 0.0)


def test_no_message_is_too_large_to_pass_ever() -> None:
    limits = CallerLimits(0, 20, 1000)
    charge(limits, A, 5000, 0.0)  # a whole bucket, and a debt of 4 s
    assert refused(limits, A, 1.0).retry_after == pytest.approx(3.0)
    charge(limits, A, 1, 4.001)
    assert refused(limits, A, 4.001, 5000).retry_after == pytest.approx(1.0)
    charge(limits, A, 5000, 5.001)


def test_a_refused_message_costs_nothing() -> None:
    limits = CallerLimits(1, 2, 100)
    charge(limits, A, 100, 0.0)
    for _ in range(10):
        assert len(refused(limits, A, 0.0, 100).quotas) == 1  # of bytes; messages are left
    charge(limits, A, 100, 1.0)
    assert len(refused(limits, A, 1.0, 100).quotas) == 1


def test_both_limits_are_named_and_the_longer_wait_counts() -> None:
    limits = CallerLimits(1, 1, 100)
    charge(limits, A, 100, 0.0)
    with pytest.raises(SightlineError) as caught:
        limits.charge_message(A, 50, 0.0, first=False)
    error = caught.value
    assert len(error.quotas) == 2
    assert error.retry_after == pytest.approx(1.0)


def test_each_caller_has_its_own_buckets() -> None:
    limits = CallerLimits(1, 1, 0)
    for who in (A, B, caller("a", Proof.JWT), ANONYMOUS):
        charge(limits, who, 1, 0.0)
    refused(limits, A, 0.0)


def test_zero_means_no_limit() -> None:
    assert CallerLimits(0, 1, 0).off
    assert not CallerLimits(1, 1, 0).off
    assert not CallerLimits(0, 1, 1).off


@settings(deadline=None)
@given(
    st.floats(1e-3, 1e6),
    st.integers(1, 1000),
    st.floats(1, 1e9),
    st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 10)), max_size=50),
)
def test_who_waits_as_told_passes(
    rate: float, burst: int, bytes_rate: float, sent: list[tuple[int, float]]
) -> None:
    limits, now = CallerLimits(rate, burst, bytes_rate), 0.0
    for size, rest in sent:
        now = passed(limits, size, now + rest)


def passed(limits: CallerLimits, size: int, now: float) -> float:
    """Return the time after which a call passes that waits for `retry_after`."""
    for _ in range(2):
        try:
            charge(limits, A, size, now)
        except SightlineError as error:
            now += error.retry_after or 0.0
        else:
            return now
    charge(limits, A, size, now)
    return now


def test_a_call_counts_when_it_begins() -> None:
    limits = CallerLimits(1, 1, 0, of_methods((INFER, 0.5, 1)))
    limits.charge_call(A, 0.0, INFER)  # and no message of it ever comes
    with pytest.raises(SightlineError) as caught:
        limits.charge_call(A, 0.0, INFER)
    assert len(caught.value.quotas) == 2


def test_memory_is_bounded_and_a_busy_caller_is_remembered() -> None:
    limits = CallerLimits(0.001, 1, 0)
    charge(limits, caller("busy"), 1, 0.0)
    for number in range(20_000):
        charge(limits, caller(f"caller-{number}"), 1, 0.0)
        if number % 1000 == 0:
            refused(limits, caller("busy"), 0.0)
    assert len(limits._buckets) == 10_000


INFER, UPLOAD = "/x.Service/Infer", "/x.Service/UploadImage"


def of_methods(*quotas: tuple[str, float, int]) -> list[Quota]:
    return [Quota(rate, burst, "calls", method) for method, rate, burst in quotas]


def test_a_method_has_a_limit_of_its_own() -> None:
    limits = CallerLimits(0, 1, 0, of_methods((INFER, 1, 2), (UPLOAD, 1, 1)))
    for method in (INFER, INFER, UPLOAD, "/x.Service/ListModels"):
        charge(limits, A, 1, 0.0, method=method)
    with pytest.raises(SightlineError) as caught:
        charge(limits, A, 1, 0.0, method=INFER)
    (quota,) = caught.value.quotas
    assert quota.subject == "caller:a"
    assert quota.description == "1 calls of Infer per second, 2 at once"
    assert caught.value.retry_after == pytest.approx(1.0)
    charge(limits, B, 1, 0.0, method=INFER)
    for _ in range(100):
        charge(limits, A, 1, 0.0, method="/x.Service/ListModels")


def test_of_a_stream_the_first_message_is_the_call() -> None:
    limits = CallerLimits(0, 1, 0, of_methods((UPLOAD, 1, 1)))
    charge(limits, A, 1, 0.0, method=UPLOAD)
    for _ in range(100):
        limits.charge_message(A, 1, 0.0, UPLOAD, first=False)
    with pytest.raises(SightlineError):
        charge(limits, A, 1, 0.0, method=UPLOAD)


def test_what_one_limit_refuses_costs_the_others_nothing() -> None:
    limits = CallerLimits(1, 1, 0, of_methods((INFER, 0.1, 2)))
    charge(limits, A, 1, 0.0, method=INFER)
    for _ in range(5):
        assert refused_of(limits, 0.0) == ["1 messages per second, 1 at once"]
    charge(limits, A, 1, 1.0, method=INFER)
    assert refused_of(limits, 2.0) == ["0.1 calls of Infer per second, 2 at once"]


def refused_of(limits: CallerLimits, now: float) -> list[str]:
    with pytest.raises(SightlineError) as caught:
        charge(limits, A, 1, now, method=INFER)
    return [quota.description for quota in caught.value.quotas]


def test_limits_of_methods_are_read() -> None:
    assert parse_method_limits(["Infer=20/s:40", "UploadImage=0.5/s", "ListModels = 2.5/s"]) == {
        "Infer": Quota(20, 40, "calls"),
        "UploadImage": Quota(0.5, 1, "calls"),
        "ListModels": Quota(2.5, 2, "calls"),
    }
    assert not CallerLimits(0, 1, 0, of_methods((INFER, 1, 1))).off


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("Infer", "must be like Infer=20/s"),
        ("Infer=20", "must be like Infer=20/s"),
        ("Infer=20/min", "must be like Infer=20/s"),
        ("Infer=-1/s", "must be like Infer=20/s"),
        ("Infer=nan/s", "must be like Infer=20/s"),
        ("Infer=1e3/s", "must be like Infer=20/s"),
        ("=1/s", "must be like Infer=20/s"),
        ("Infer=1/s:x", "must be like Infer=20/s"),
        ("Infer=0/s", "a rate above 0"),
        ("Infer=9999999999/s", "a rate above 0 and up to 1e9"),
        ("Infer=1/s:0", "a burst of 1"),
    ],
)
def test_a_limit_that_cannot_be_meant(word: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        parse_method_limits([word])


def test_a_method_is_limited_once() -> None:
    with pytest.raises(ValueError, match="'Infer' twice"):
        parse_method_limits(["Infer=1/s", "Infer=2/s"])
