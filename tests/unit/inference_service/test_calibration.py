"""Calibration error and temperature fit, on known and on generated numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from inference_service.models.calibration import (
    TEMPERATURES,
    Labels,
    Logits,
    ece,
    fit_temperature,
    measure,
    nll,
)
from vision import softmax

FINITE = st.floats(-50, 50, width=32)


@st.composite
def sets(draw: st.DrawFn) -> tuple[Logits, Labels]:
    """Generate logits of a few pictures, and any classes as true ones."""
    rows, classes = draw(st.integers(1, 20)), draw(st.integers(1, 6))
    logits = draw(npst.arrays(np.float64, (rows, classes), elements=FINITE))
    labels = draw(npst.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    return logits, labels


def calibrated(pictures: int, *, temperature: float = 1.0) -> tuple[Logits, Labels]:
    """Return logits whose probabilities are true, times a temperature."""
    random = np.random.default_rng(4)
    logits = random.normal(0, 2, (pictures, 10))
    chances = softmax(logits).cumsum(axis=1)
    labels = (random.random((pictures, 1)) > chances).sum(axis=1).clip(0, 9)
    return logits * temperature, labels


@given(sets())
def test_a_fitted_temperature_is_never_worse_than_none(generated: tuple[Logits, Labels]) -> None:
    logits, labels = generated
    fitted = fit_temperature(logits, labels)
    assert TEMPERATURES[0] <= fitted <= TEMPERATURES[1]
    assert nll(logits, labels, fitted) <= nll(logits, labels) + 1e-9


@given(sets(), st.floats(0.02, 50))
def test_no_other_temperature_is_better(generated: tuple[Logits, Labels], other: float) -> None:
    logits, labels = generated
    fitted = fit_temperature(logits, labels)
    assert nll(logits, labels, fitted) <= nll(logits, labels, other) + 1e-6


@given(sets(), st.floats(0.02, 50))
def test_what_is_measured_stays_in_its_range(
    generated: tuple[Logits, Labels], temperature: float
) -> None:
    before, after = measure(*generated), measure(*generated, temperature)
    assert 0 <= after.ece <= 1
    assert after.nll >= 0
    assert math.isfinite(after.nll)
    assert before.accuracy == after.accuracy
    assert after.nll == pytest.approx(nll(*generated, temperature))


def test_a_temperature_does_not_change_which_class_is_the_surest() -> None:
    logits, labels = np.array([[-(2.0**-52), 0.0]]), np.array([1])
    assert measure(logits, labels, 4.0).accuracy == measure(logits, labels).accuracy == 1


def test_probabilities_that_are_true_have_no_error() -> None:
    logits, labels = calibrated(50_000)
    assert measure(logits, labels).ece < 0.01
    assert fit_temperature(logits, labels) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("temperature", [0.05, 0.4, 3.0, 20.0])
def test_the_temperature_that_went_in_is_found(temperature: float) -> None:
    logits, labels = calibrated(20_000, temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)
    before = measure(logits, labels).ece
    assert measure(logits, labels, fit_temperature(logits, labels)).ece < min(before, 0.015)


def test_ece_by_hand() -> None:
    # Bin (0.8, 0.867]: two pictures at 0.84, one right. Bin (0.933, 1]: two at 0.96, both right.
    probabilities = np.array([[0.84, 0.16], [0.84, 0.16], [0.96, 0.04], [0.04, 0.96]])
    expected = (2 * abs(0.5 - 0.84) + 2 * abs(1 - 0.96)) / 4
    assert ece(probabilities, np.array([0, 1, 0, 1])) == pytest.approx(expected)


def test_ece_of_the_surest_errors_is_one() -> None:
    assert ece(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, 1])) == 1


def test_errors_of_a_bin_make_up_for_each_other_and_those_of_two_do_not() -> None:
    together = np.array([[0.9, 0.1]] * 10)
    assert ece(together, np.array([0] * 9 + [1])) == pytest.approx(0)
    apart = np.array([[0.55, 0.45], [0.95, 0.05]])
    assert ece(apart, np.array([0, 1])) == pytest.approx((0.45 + 0.95) / 2)


def test_nll_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    expected = -(math.log(0.5) + math.log(0.1)) / 2
    assert nll(logits, np.array([0, 1])) == pytest.approx(expected)


def test_a_probability_of_zero_for_what_is_true_is_no_infinite_loss() -> None:
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]]))
    labels = np.array([1, 0, 0])
    assert nll(logits, labels) == pytest.approx(104 / 3, rel=0.05)
    assert 1 < fit_temperature(logits, labels) <= TEMPERATURES[1]


def test_where_being_surer_always_pays_the_bound_comes_back() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, np.array([0, 1])) == TEMPERATURES[0]
    assert fit_temperature(logits, np.array([1, 0])) == TEMPERATURES[1]


def test_where_nothing_makes_a_difference_nothing_is_changed() -> None:
    assert fit_temperature(np.zeros((3, 4)), np.array([0, 1, 2])) == 1
    assert fit_temperature(np.array([[3.0], [5.0]]), np.array([0, 0])) == 1


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (np.zeros((0, 3)), np.zeros(0, dtype=np.int64), "logits must be"),
        (np.zeros((2, 3)), np.zeros(3, dtype=np.int64), "labels"),
        (np.zeros((2, 3)), np.array([0, 3]), r"0\.\.2"),
        (np.zeros((2, 3)), np.array([-1, 0]), r"0\.\.2"),
        (np.full((1, 3), -np.inf), np.array([0]), "finite"),
        (np.full((1, 3), np.nan), np.array([0]), "finite"),
    ],
)
def test_arrays_that_do_not_fit(logits: Logits, labels: Labels, says: str) -> None:
    for function in (nll, fit_temperature, measure):
        with pytest.raises(ValueError, match=says):
            function(logits, labels)


def test_temperatures_out_of_range() -> None:
    for temperature in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            nll(np.zeros((1, 2)), np.array([0]), temperature)
