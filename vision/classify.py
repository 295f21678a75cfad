"""From a classifier's output to its surest classes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.errors import ModelError

_ROUNDING = 0.02  # how far from 1 the sum of half-precision or quantised probabilities may be


class Scores(StrEnum):
    """What a classifier puts out for each class."""

    LOGITS = "logits"
    """Any real number; softmax makes probabilities of them."""
    PROBABILITIES = "probabilities"
    """In 0..1, with a sum of 1: the network ends in its own softmax."""


@dataclass(frozen=True, slots=True)
class Classes:
    """What one picture shows, surest first; of equals the lower id comes first.

    Attributes:
        class_id: int64 ``[K]``.
        probability: float32 ``[K]``, in 0..1.
    """

    class_id: NDArray[np.int64]
    probability: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.class_id)


def to_logits(output: NDArray[Any], scores: Scores) -> NDArray[np.float64]:
    """A classifier's output ``[..., classes]`` as logits of the same shape.

    The logits of probabilities are their logarithms, so that a temperature means the same for
    both; the logarithm of 0 is minus infinity.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``: NaN, infinity, or no probabilities where these are
            what the model puts out.
    """
    values = np.asarray(output, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ModelError("MODEL_OUTPUT_INVALID", "the model's output has NaN or infinity")
    if scores is Scores.LOGITS:
        return values
    off = np.abs(values.sum(axis=-1) - 1).max(initial=0)
    if off > _ROUNDING or values.min(initial=0) < 0:
        raise ModelError(
            "MODEL_OUTPUT_INVALID",
            "the model's output must be probabilities: in 0..1, with a sum of 1",
        )
    with np.errstate(divide="ignore"):
        logarithms: NDArray[np.float64] = np.log(values)
    return logarithms


def softmax(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities of logits ``[..., classes]``, in the same shape.

    Args:
        logits: finite or minus infinity, at least one of each row finite.
        temperature: above 0; the logits are divided by it. Above 1 the probabilities move towards
            each other, the order of the classes stays.

    Raises:
        ValueError: a temperature that is not above 0, or not finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be above 0 and finite, is {temperature}")
    # Less the highest first, so that the exponential does not overflow; minus infinity is right.
    with np.errstate(over="ignore"):
        powers = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def decode_classes(
    output: NDArray[Any], *, scores: Scores = Scores.LOGITS, temperature: float = 1.0, top_k: int
) -> Classes:
    """Read one picture's output ``[classes]``.

    Args:
        output: a score for each class.
        scores: what the scores are.
        temperature: above 0; see `softmax`.
        top_k: how many classes are wanted, at least 1; no more come back than there are.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``; see `to_logits`.
        ValueError: a parameter out of its range, which it names.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, is {top_k}")
    logits = to_logits(output, scores)
    probabilities = softmax(logits, temperature)
    # By logits: a low temperature makes equals of probabilities that are none.
    order = np.argsort(-logits, kind="stable")[:top_k]
    return Classes(order.astype(np.int64), probabilities[order].astype(np.float32))
