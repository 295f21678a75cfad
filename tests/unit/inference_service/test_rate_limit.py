"""Token buckets on a clock that the test moves."""

import grpc
import pytest

from inference_service.rate_limit import RateLimiter
from servicekit.errors import SightlineError


def refused(limiter: RateLimiter, caller: str, now: float) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        limiter.take(caller, now)
    return caught.value


def test_a_burst_then_the_rate() -> None:
    limiter = RateLimiter(per_second=2, burst=3)
    for _ in range(3):
        limiter.take("a", 100.0)
    error = refused(limiter, "a", 100.0)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "RATE_LIMITED"
    assert error.retry_after == pytest.approx(0.5)
    assert error.quotas[0].subject == "caller:a"
    assert refused(limiter, "a", 100.4).retry_after == pytest.approx(0.1)
    limiter.take("a", 100.5)
    refused(limiter, "a", 100.6)


def test_a_rest_fills_the_bucket_and_no_more() -> None:
    limiter = RateLimiter(per_second=2, burst=3)
    for at in (0.0, 0.0, 0.0, 1000.0, 1000.0, 1000.0):
        limiter.take("a", at)
    refused(limiter, "a", 1000.0)


def test_each_caller_has_its_own_bucket() -> None:
    limiter = RateLimiter(per_second=1, burst=1)
    limiter.take("a", 0.0)
    limiter.take("b", 0.0)
    refused(limiter, "a", 0.0)


def test_zero_means_no_limit() -> None:
    limiter = RateLimiter(per_second=0, burst=1)
    for _ in range(100):
        limiter.take("a", 0.0)


def test_memory_is_bounded_and_a_busy_caller_is_remembered() -> None:
    limiter = RateLimiter(per_second=0.001, burst=1)
    limiter.take("busy", 0.0)
    for number in range(20_000):
        limiter.take(f"caller-{number}", 0.0)
        if number % 1000 == 0:
            refused(limiter, "busy", 0.0)
    assert len(limiter._buckets) == 10_000
