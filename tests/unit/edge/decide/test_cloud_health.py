"""The circuit breaker and the retry tokens, on a clock that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.decide.cloud_health import Breaker, BreakerState, Permit, RetryTokens
from edge.decide.run_times import RunTimes


def permit(breaker: Breaker, now: float) -> Permit:
    acquired = breaker.acquire(now)
    assert acquired is not None
    return acquired


def opened(at: float = 0.0) -> Breaker:
    """Return a breaker that opened at a time, for 10 s."""
    breaker = Breaker(3, 10.0)
    for _ in range(3):
        breaker.release(permit(breaker, at), answered=False, now=at)
    assert breaker.state(at) is BreakerState.OPEN
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(3, 10.0)
    for answered in (False, False, True, False, False):
        breaker.release(permit(breaker, 1.0), answered=answered, now=1.0)
        assert breaker.state(1.0) is BreakerState.CLOSED
    breaker.release(permit(breaker, 2.0), answered=False, now=2.0)
    assert breaker.state(2.0) is BreakerState.OPEN
    assert breaker.acquire(2.0) is None
    assert breaker.opens_in(4.0) == 8.0
    assert breaker.opened == 1


def test_what_says_nothing_of_the_cloud_counts_neither_way() -> None:
    breaker = Breaker(3, 10.0)
    for answered in (False, False, None, None, False):
        breaker.release(permit(breaker, 1.0), answered=answered, now=1.0)
    assert breaker.state(1.0) is BreakerState.OPEN


def test_it_half_opens_by_itself_and_lets_one_request_try() -> None:
    breaker = opened()
    assert breaker.acquire(9.999) is None
    assert breaker.state(10.0) is BreakerState.HALF_OPEN
    assert permit(breaker, 10.0).probe
    assert breaker.acquire(10.0) is None
    assert breaker.acquire(500.0) is None


def test_an_answer_to_that_one_closes_it() -> None:
    breaker = opened()
    breaker.release(permit(breaker, 10.0), answered=True, now=10.5)
    assert breaker.state(10.5) is BreakerState.CLOSED
    for _ in range(2):  # and the count begins anew
        breaker.release(permit(breaker, 11.0), answered=False, now=11.0)
    assert breaker.state(11.0) is BreakerState.CLOSED


def test_a_failure_of_that_one_opens_it_again_for_the_whole_time() -> None:
    breaker = opened()
    breaker.release(permit(breaker, 10.0), answered=False, now=12.0)
    assert breaker.state(21.9) is BreakerState.OPEN
    assert breaker.state(22.0) is BreakerState.HALF_OPEN
    assert breaker.opened == 2


def test_a_probe_that_was_dropped_makes_room_for_another() -> None:
    breaker = opened()
    breaker.release(permit(breaker, 10.0), answered=None, now=10.1)
    assert permit(breaker, 10.1).probe


def test_late_verdicts_of_before_it_opened_count_no_more() -> None:
    breaker = Breaker(3, 10.0)
    early = [permit(breaker, 0.0) for _ in range(7)]
    for acquired in early[:3]:
        breaker.release(acquired, answered=False, now=1.0)
    for acquired in early[3:6]:
        breaker.release(acquired, answered=False, now=2.0)
    breaker.release(early[6], answered=True, now=3.0)
    assert breaker.state(10.9) is BreakerState.OPEN
    assert breaker.state(11.0) is BreakerState.HALF_OPEN
    assert breaker.opened == 1


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.booleans(), st.sampled_from([True, False, None])),
        max_size=80,
    )
)
def test_whatever_happens_at_most_one_probe_is_out_and_open_means_no_request(
    steps: list[tuple[float, bool, bool | None]],
) -> None:
    breaker, now, out = Breaker(2, 3.0), 0.0, list[Permit]()
    for passes, asks, verdict in steps:
        now += passes
        state = breaker.state(now)
        if asks:
            if (acquired := breaker.acquire(now)) is not None:
                assert state is not BreakerState.OPEN
                assert acquired.probe is (state is BreakerState.HALF_OPEN)
                out.append(acquired)
            else:
                assert state is not BreakerState.CLOSED
        elif out:
            breaker.release(out.pop(0), verdict, now)
        probes = [acquired for acquired in out if acquired.probe]
        assert len(probes) <= 1
        if breaker.state(now) is BreakerState.HALF_OPEN and not probes:
            probe = permit(breaker, now)  # never stuck
            breaker.release(probe, answered=None, now=now)


def test_retries_stop_when_half_the_tokens_are_gone() -> None:
    tokens = RetryTokens(10, 0.5)
    assert [tokens.failed() for _ in range(6)] == [True] * 4 + [False] * 2
    assert tokens.left == 4.0
    for _ in range(4):
        tokens.answered()
    assert tokens.left == 6.0
    assert [tokens.failed() for _ in range(2)] == [False, False]
    for _ in range(6):
        tokens.answered()
    assert tokens.failed()


def test_tokens_neither_go_below_none_nor_above_all() -> None:
    tokens = RetryTokens(2, 1.0)
    for _ in range(5):
        tokens.failed()
    assert tokens.left == 0.0
    for _ in range(5):
        tokens.answered()
    assert tokens.left == 2.0


def test_the_95th_percentile_is_known_from_20_runs_on() -> None:
    times = RunTimes()
    for seconds in range(19, 0, -1):
        times.add(seconds)
        assert times.p95() is None
    times.add(20)
    assert times.p95() == 19


@pytest.mark.parametrize("runs", [200, 1000])
def test_only_the_latest_200_runs_count(runs: int) -> None:
    times = RunTimes()
    for _ in range(runs):
        times.add(100.0)
    for seconds in range(1, 201):
        times.add(seconds)
    assert times.p95() == 190
