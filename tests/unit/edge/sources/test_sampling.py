"""Sampling by number and by time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.sources.sampling import Sampler, Sampling


def taken(sampling: Sampling, times: list[float]) -> list[int]:
    sampler = Sampler(sampling)
    return [index for index, seconds in enumerate(times) if sampler.takes(seconds)]


def test_all_frames_are_taken_unless_told_otherwise() -> None:
    assert taken(Sampling(), [0.0] * 5) == [0, 1, 2, 3, 4]


def test_every_nth_begins_with_the_first() -> None:
    assert taken(Sampling(every=3), [0.0] * 8) == [0, 3, 6]


def test_one_every_second_at_25_frames_a_second() -> None:
    times = [index / 25 for index in range(100)]
    assert taken(Sampling(every_seconds=1.0), times) == [0, 25, 50, 75]


def test_a_rate_that_frames_do_not_fit_is_still_kept_on_average() -> None:
    times = [index / 30 for index in range(3000)]  # 100 s
    assert len(taken(Sampling(every_seconds=0.35), times)) == pytest.approx(100 / 0.35, abs=1)


def test_after_a_pause_there_is_no_burst() -> None:
    times = [0.0, 1.0, 60.0, 60.1, 60.2, 61.0]
    assert taken(Sampling(every_seconds=1.0), times) == [0, 1, 2, 5]


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=60),
    st.floats(0.01, 5),
)
def test_two_frames_taken_are_never_a_burst(gaps: list[float], step: float) -> None:
    times = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    indices = taken(Sampling(every_seconds=step), times)
    # On a grid: any n + 1 frames taken span more than n - 1 steps.
    for first in range(len(indices)):
        for last in range(first + 1, len(indices)):
            span = times[indices[last]] - times[indices[first]]
            assert span > (last - first - 1) * step - 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be >= 1, got 0"),
        ({"every_seconds": 0.0}, "every_seconds must be above 0 and finite, got 0"),
        ({"every_seconds": float("nan")}, "every_seconds must be above 0"),
        ({"every_seconds": float("inf")}, "every_seconds must be above 0"),
        ({"every": 2, "every_seconds": 1.0}, "every_seconds must not be given together with every"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)  # type: ignore[arg-type]
