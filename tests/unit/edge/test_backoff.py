"""Waits before retries are random, and bounded by a doubling ceiling."""

from edge.backoff import full_jitter


def test_waits_are_spread_below_a_ceiling_that_doubles_up_to_its_bound() -> None:
    backoff = full_jitter(first=0.1, maximum=0.5)
    for retry, ceiling in enumerate([0.1, 0.2, 0.4, 0.5, 0.5], start=1):
        waits = [backoff(retry) for _ in range(2000)]
        assert 0 <= min(waits) < 0.05 * ceiling
        assert 0.95 * ceiling < max(waits) <= ceiling
        assert 0.4 * ceiling < sum(waits) / len(waits) < 0.6 * ceiling


def test_a_camera_that_is_lost_for_days_keeps_its_bound() -> None:
    backoff = full_jitter(first=0.5, maximum=30.0)
    assert all(0 <= backoff(retry) <= 30.0 for retry in (1025, 10_000, 1_000_000))
