"""Scores to probabilities to the surest classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision import ModelError, Scores, decode_classes, softmax, to_logits

rows = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20)
temperatures = st.floats(0.01, 100)


@given(rows, temperatures)
def test_probabilities_are_probabilities_in_the_order_of_the_logits(
    row: list[float], temperature: float
) -> None:
    logits = np.array(row)
    probabilities = softmax(logits, temperature)
    assert probabilities.sum() == pytest.approx(1)
    assert (probabilities >= 0).all()
    assert (np.diff(probabilities[np.argsort(logits)]) >= 0).all()


def test_softmax_is_the_definition() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, -1.0]])
    for temperature in (1.0, 2.5):
        powers = np.exp(logits / temperature)
        expected = powers / powers.sum(axis=1, keepdims=True)
        assert softmax(logits, temperature) == pytest.approx(expected)


def test_extremes_neither_overflow_nor_vanish() -> None:
    assert softmax(np.array([1e308, -1e308]), 0.01).tolist() == [1, 0]
    assert softmax(np.array([-np.inf, -1e30])).tolist() == [0, 1]


@given(rows, temperatures)
def test_a_temperature_means_the_same_for_probabilities(
    row: list[float], temperature: float
) -> None:
    logits = np.array(row).clip(-20, 20)
    probabilities = softmax(logits)
    again = softmax(to_logits(probabilities, Scores.PROBABILITIES), temperature)
    assert again == pytest.approx(softmax(logits, temperature), abs=1e-9)


def test_the_surest_come_first_and_of_equals_the_lower_id() -> None:
    classes = decode_classes(np.array([0.0, 3.0, 3.0, 5.0, 3.0], dtype=np.float32), top_k=4)
    assert classes.class_id.tolist() == [3, 1, 2, 4]
    assert classes.probability[1] == classes.probability[3]
    assert classes.class_id.dtype == np.int64
    assert classes.probability.dtype == np.float32
    assert len(classes) == 4


def test_a_high_temperature_does_not_change_who_comes_first() -> None:
    scores = np.array([0.0, 1e-12, 0.0])
    assert decode_classes(scores, temperature=100, top_k=1).class_id.tolist() == [1]


def test_no_more_classes_than_there_are() -> None:
    classes = decode_classes(np.zeros(3), top_k=1000)
    assert classes.class_id.tolist() == [0, 1, 2]
    assert classes.probability == pytest.approx([1 / 3] * 3)


def test_half_precision_scores() -> None:
    classes = decode_classes(np.array([60000, 0, 100], dtype=np.float16), top_k=2)
    assert (classes.class_id.tolist(), classes.probability.tolist()) == ([0, 2], [1, 0])


def test_probabilities_are_taken_as_they_are() -> None:
    output = np.array([0.25, 0.0, 0.75], dtype=np.float32)
    classes = decode_classes(output, scores=Scores.PROBABILITIES, top_k=3)
    assert classes.class_id.tolist() == [2, 0, 1]
    assert classes.probability == pytest.approx([0.75, 0.25, 0])


@pytest.mark.parametrize("scores", list(Scores))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_an_error(scores: Scores, value: float) -> None:
    with pytest.raises(ModelError, match="NaN or infinity") as caught:
        decode_classes(np.array([0.5, value, 0.5]), scores=scores, top_k=1)
    assert caught.value.reason == "MODEL_OUTPUT_INVALID"


@pytest.mark.parametrize("output", [[2.0, 5.0], [0.5, 0.4], [-0.5, 1.5], [0.0, 0.0]])
def test_logits_are_no_probabilities(output: list[float]) -> None:
    with pytest.raises(ModelError, match="sum of 1") as caught:
        to_logits(np.array(output), Scores.PROBABILITIES)
    assert caught.value.reason == "MODEL_OUTPUT_INVALID"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("top_k", {"top_k": 0}),
        ("temperature", {"top_k": 1, "temperature": 0}),
        ("temperature", {"top_k": 1, "temperature": float("nan")}),
        ("temperature", {"top_k": 1, "temperature": float("inf")}),
    ],
)
def test_parameters_out_of_range_are_named(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=name):
        decode_classes(np.zeros(3), **options)  # type: ignore[arg-type]
