"""Tests of the figures of `bench.infer` against their definitions."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.infer.__main__ import USUAL, selected
from bench.infer.figures import (
    OK,
    Call,
    MeasurementWindow,
    closed,
    goodput,
    median_ratio,
    percentile,
    recovered_after,
    with_cpu,
)
from bench.infer.load import arrivals
from bench.infer.parts import unheard_answers
from bench.infer.servers import answered_calls


def ok(sent: float, ended: float) -> Call:
    return Call(sent, ended, OK)


def one_after_the_other(count: int, seconds: float, first: float = 0.0) -> list[Call]:
    return [ok(first + at * seconds, first + (at + 1) * seconds) for at in range(count)]


def test_a_call_across_an_edge_counts_by_its_part() -> None:
    figures = closed([ok(0, 2), ok(2, 4), ok(4, 8)], began=1, seconds=5)
    assert figures.per_s == pytest.approx((0.5 + 1 + 0.5) / 5)


@given(first=st.floats(-1, 0), seconds=st.floats(0.01, 0.9))
def test_the_rate_does_not_depend_on_how_the_calls_happen_to_lie(
    first: float, seconds: float
) -> None:
    calls = one_after_the_other(int(12 / seconds), seconds, first)
    assert closed(calls, began=0, seconds=10).per_s == pytest.approx(1 / seconds)


def test_the_rates_of_callers_add_up() -> None:
    calls = [*one_after_the_other(100, 0.1), *one_after_the_other(50, 0.2, 0.03)]
    assert closed(calls, began=1, seconds=8).per_s == pytest.approx(15)


def test_the_p99_is_of_the_calls_that_lie_in_the_time() -> None:
    outside = [ok(0, 9), ok(15, 99)]
    inside = [*one_after_the_other(99, 0.01, first=10), ok(14, 18.5)]
    assert closed([*outside, *inside], began=9.5, seconds=5).p99_ms == 10.0
    assert closed([*inside, ok(0, 9.6)], began=9.5, seconds=5).p99_ms == 4500.0


def test_a_closed_loop_with_a_call_that_was_refused_has_no_figures() -> None:
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED': 1"):
        closed([ok(0, 1), Call(1, 2, "RESOURCE_EXHAUSTED")], began=0, seconds=2)


def test_a_call_that_takes_longer_than_the_time_counts() -> None:
    assert closed([ok(0, 9)], began=1, seconds=2).per_s == pytest.approx(1 / 9)


def test_a_closed_loop_without_calls_has_no_figures() -> None:
    with pytest.raises(ValueError, match="at least one"):
        closed([ok(0, 1), ok(3, 4)], began=1, seconds=2)


def test_cpu_time_is_that_of_all_calls_also_of_those_outside_the_time() -> None:
    figures = closed([ok(0, 1), ok(1, 2), ok(2, 3), ok(3, 4)], began=1, seconds=2)
    assert with_cpu(figures, seconds=2.0).cpu_ms == 500.0


def test_the_time_that_counts_begins_when_all_were_answered() -> None:
    window = MeasurementWindow(3, seconds=5)
    for caller, now in ((0, 1.0), (0, 2.0), (2, 3.0)):
        window.answered(caller, now)
        assert not window.over(1e9)
    window.answered(1, 4.0)
    window.answered(0, 6.0)
    assert window.began == 4.0
    assert (window.over(8.9), window.over(9.0)) == (False, True)


def test_only_answers_in_time_and_during_the_load_are_good() -> None:
    calls = [
        ok(10, 10.5),
        ok(10, 11),  # to the last moment
        ok(10, 11.01),  # late
        ok(11.8, 12.1),  # when the load was over
        Call(10, 10.1, "RESOURCE_EXHAUSTED"),
    ]
    figures = goodput(calls, deadline=1, began=10, seconds=2)
    assert (figures.good_per_s, figures.late) == (1.0, 1)
    assert figures.codes == {"OK": 4, "RESOURCE_EXHAUSTED": 1}
    assert figures.p99_ms == 1000.0


def test_goodput_of_nothing_is_nothing() -> None:
    figures = goodput([Call(0, 1, "DEADLINE_EXCEEDED")], deadline=1, began=0, seconds=2)
    assert (figures.good_per_s, figures.late, figures.p99_ms) == (0, 0, None)


def test_recovered_is_when_the_first_call_of_usual_length_was_sent() -> None:
    probes = [Call(5.0, 6.0, "DEADLINE_EXCEEDED"), ok(6.0, 6.9), ok(7.0, 7.1), ok(7.1, 7.2)]
    assert recovered_after(probes, began=5, usual=0.15) == pytest.approx(2.0)
    assert recovered_after(probes, began=5, usual=0.05) is None


def test_a_refusal_at_once_is_no_recovery() -> None:
    assert recovered_after([Call(5, 5.01, "RESOURCE_EXHAUSTED")], began=5, usual=1) is None


def test_ratios_are_those_of_rounds() -> None:
    # The machine was twice as fast in one round: medians of each would say 1.5.
    assert median_ratio([90, 190, 60], [100, 200, 50]) == 0.95
    with pytest.raises(ValueError, match="at least one round"):
        median_ratio([], [])


@pytest.mark.parametrize(
    ("values", "share", "expected"), [([3], 0.99, 3), (range(1, 101), 0.99, 99), ([1, 2], 0.5, 1)]
)
def test_percentile(values: Sequence[float], share: float, expected: float) -> None:
    assert percentile(random.sample(list(values), len(values)), share) == expected


def test_arrivals_come_at_their_rate_and_the_same_for_a_seed() -> None:
    times = list(arrivals(50, 200, seed=4))
    assert times == list(arrivals(50, 200, seed=4)) != list(arrivals(50, 200, seed=5))
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 200
    assert len(times) == pytest.approx(10_000, rel=0.04)  # four standard deviations
    # Exponential gaps: as spread as they are long.
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


def test_answers_are_counted_by_the_servers_own_metrics() -> None:
    page = """
# HELP sightline_grpc_requests_total Calls that ended, by status code
# TYPE sightline_grpc_requests_total counter
sightline_grpc_requests_total{code="OK",method="Infer",caller="a",service="s"} 40.0
sightline_grpc_requests_total{code="OK",method="Infer",caller="b",service="s"} 2.0
sightline_grpc_requests_total{code="RESOURCE_EXHAUSTED",method="Infer",service="s"} 7.0
sightline_grpc_requests_total{code="OK",method="ListModels",service="s"} 9.0
"""
    assert answered_calls(page) == 42


def test_a_server_that_does_not_count_is_not_taken_for_one_that_answered_nothing() -> None:
    with pytest.raises(RuntimeError, match="does not count"):
        answered_calls("# TYPE other counter\nother_total 1.0\n")


def test_answers_that_nobody_received_are_those_the_server_sent_besides() -> None:
    assert unheard_answers(sent=12, received=10) == 2
    with pytest.raises(RuntimeError, match="counts 9 answers, but 10"):
        unheard_answers(sent=9, received=10)


def test_what_is_measured() -> None:
    every = [(case, part) for case, parts in USUAL.items() for part in parts]
    assert list(selected(None, None)) == [*every, ("cuda", "cuda")]
    assert list(selected("plates", None)) == [("plates", part) for part in USUAL["plates"]]
    assert list(selected(None, "light")) == [("plates", "light")]
    assert list(selected("plates", "overload")) == [("plates", "overload")]
    assert list(selected(None, "cuda")) == [("cuda", "cuda")]
