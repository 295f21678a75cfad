"""Decoding of a classifier's output into its most probable classes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.errors import ModelError

_ROUNDING = 0.02  # how far from 1 the sum of half-precision or quantised probabilities may be


class Scores(StrEnum):
    """The kind of score that a classifier outputs for each class."""

    LOGITS = "logits"
    """Any real number; softmax turns them into probabilities."""
    PROBABILITIES = "probabilities"
    """In 0..1, with a sum of 1: the network ends in a softmax."""


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of one image, most probable first; of equals the lower id comes first.

    Attributes:
        class_id: int64 ``[K]``.
        probability: float32 ``[K]``, in 0..1.
    """

    class_id: NDArray[np.int64]
    probability: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.class_id)


def to_logits(output: NDArray[Any], scores: Scores) -> NDArray[np.float64]:
    """Return a classifier's output ``[..., classes]`` as logits of the same shape.

    The logits of probabilities are their logarithms, so that a temperature has the same effect on
    both kinds of score; the logarithm of 0 is minus infinity.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``: NaN, infinity, or values that are not probabilities
            although the model declares probabilities.
    """
    values = np.asarray(output, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ModelError("MODEL_OUTPUT_INVALID", "the model's output contains NaN or infinity")
    if scores is Scores.LOGITS:
        return values
    deviation = np.abs(values.sum(axis=-1) - 1).max(initial=0)
    if deviation > _ROUNDING or values.min(initial=0) < 0:
        raise ModelError(
            "MODEL_OUTPUT_INVALID",
            "the model's output must be probabilities, in 0..1 with a sum of 1, got a sum that is"
            f" off by {deviation:.3g} and a lowest value of {values.min(initial=0):.3g}",
        )
    with np.errstate(divide="ignore"):
        logarithms: NDArray[np.float64] = np.log(values)
    return logarithms


def softmax(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probabilities of logits ``[..., classes]``, in the same shape.

    Args:
        logits: finite or minus infinity, at least one of each row finite.
        temperature: above 0; the logits are divided by it. A temperature above 1 makes the
            probabilities more equal and keeps the order of the classes.

    Raises:
        ValueError: a temperature that is not above 0, or not finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    # Subtract the highest, so that the exponential does not overflow. An underflow to 0 is right.
    with np.errstate(over="ignore"):
        powers = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def decode_classes(
    output: NDArray[Any], *, scores: Scores = Scores.LOGITS, temperature: float = 1.0, top_k: int
) -> Classes:
    """Decode the output ``[classes]`` of one image.

    Args:
        output: a score for each class.
        scores: the kind of score.
        temperature: above 0; see `softmax`.
        top_k: number of classes to return, at least 1; fewer if the model has fewer.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``; see `to_logits`.
        ValueError: a parameter out of its range, which it names.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    logits = to_logits(output, scores)
    probabilities = softmax(logits, temperature)
    # Sort by logits: a low temperature rounds different probabilities to the same value.
    order = np.argsort(-logits, kind="stable")[:top_k]
    return Classes(order.astype(np.int64), probabilities[order].astype(np.float32))
