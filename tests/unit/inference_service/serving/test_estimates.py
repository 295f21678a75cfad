"""Estimates learned from runs, on a clock that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.serving.estimates import Estimates


def known(*seconds: float, rows: int = 1, now: float = 0.0) -> Estimates:
    estimates = Estimates()
    for duration in seconds:
        estimates.learn(rows, duration, now)
    return estimates


def test_nothing_is_known_at_first() -> None:
    estimates = Estimates()
    assert (estimates.mean(1, 0), estimates.p95(1, 0)) == (0, 0)


def test_mean_and_p95_of_the_latest_runs() -> None:
    estimates = known(*(number / 100 for number in range(1, 101)))
    assert estimates.mean(1, 0) == pytest.approx(0.48)
    assert estimates.p95(1, 0) == pytest.approx(0.95)
    for _ in range(100):
        estimates.learn(1, 7.0, 0)
    assert estimates.mean(1, 0) == pytest.approx(7.0)
    assert estimates.p95(1, 0) == 7.0


@pytest.mark.parametrize("before", [1, 2, 5, 19, 60])
def test_one_slow_run_does_not_count(before: int) -> None:
    estimates = known(*[0.1] * before, 60.0)
    assert estimates.mean(1, 0) == pytest.approx(0.1)
    assert estimates.p95(1, 0) == pytest.approx(0.1)


def test_a_model_that_has_become_slow_is_believed_soon() -> None:
    estimates = known(*[0.1] * 20)
    for _ in range(3):
        estimates.learn(1, 0.5, 0)
    assert estimates.p95(1, 0) == 0.5


def test_the_only_run_counts_until_it_is_old() -> None:
    estimates = known(9.0)
    assert estimates.p95(1, 30.0) == 9.0
    assert estimates.p95(1, 30.1) == 0.0


def test_each_size_of_batch_has_its_own() -> None:
    estimates = known(0.1)
    for _ in range(3):
        estimates.learn(8, 0.3, 0)
    assert estimates.p95(1, 0) == pytest.approx(0.1)
    assert estimates.p95(8, 0) == pytest.approx(0.3)
    assert estimates.p95(5, 0) == pytest.approx(0.3)  # 5 to 8 are one class


def test_an_unknown_size_is_told_from_its_neighbours() -> None:
    estimates = known(0.1, rows=2)
    assert estimates.p95(8, 0) == pytest.approx(0.4)  # at worst as if each were run on its own
    assert estimates.p95(1, 0) == pytest.approx(0.1)  # at worst as long as two


def test_an_image_costs_by_its_size_and_not_by_those_of_others() -> None:
    """Item 5: after large pictures of one caller, small ones of another are not late."""
    estimates = known(0.1)
    for _ in range(20):
        estimates.learn_decoding(32_000_000, 2.0, 0)
    assert estimates.p95(1, 0, effort=32_000_000) == pytest.approx(2.1)
    assert estimates.p95(1, 0, effort=1_000_000) == pytest.approx(0.1 + 2.0 / 32)
    assert estimates.p95(1, 0) == pytest.approx(0.1)
    assert estimates.decoding(2**26, 0) == pytest.approx(4.0)
    assert estimates.decoding(0, 0) == 0.0


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.floats(0.001, 10), st.floats(0, 60)),
        min_size=1,
        max_size=60,
    )
)
def test_mean_is_never_above_p95_nor_p95_above_the_slowest(
    runs: list[tuple[int, float, float]],
) -> None:
    estimates, now = Estimates(), 0.0
    for rows, seconds, passed in runs:
        now += passed
        estimates.learn(rows, seconds, now)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        mean, p95 = estimates.mean(rows, now), estimates.p95(rows, now)
        assert 0 < mean <= p95 * (1 + 1e-9)
        assert p95 <= 64 * max(seconds for _, seconds, _ in runs)
