"""Temperature scaling: how far a classifier's probabilities are from the truth, and what helps.

The temperature T divides the logits before their softmax. It moves probabilities and never the
order of classes, so accuracy stays. It is fitted by minimising the negative log-likelihood, and
judged by the expected calibration error on images that the fit did not see: Guo, Pleiss, Sun and
Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, sections 2 and 4.2. Pure.

Everywhere: `logits` are float64 `[N, classes]`, N >= 1, finite or minus infinity; `labels` are
int64 `[N]`, the classes that are true.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision import softmax

Logits = NDArray[np.float64]
Labels = NDArray[np.int64]

TEMPERATURES = (0.01, 100.0)
"""Lowest and highest that is ever fitted."""
BINS = 15
"""Of the expected calibration error, as Guo et al. have them."""
_STEPS = 100  # of the search: it is through after ten
_PRECISE = 1e-9  # of 1 / T, relative
_LEAST = 104.0  # below the highest logit: float32 has no smaller probability than exp(-104)


@dataclass(frozen=True, slots=True)
class Quality:
    """How good probabilities are."""

    pictures: int
    accuracy: float
    """Share of images whose surest class is true, in [0, 1]; no temperature changes it."""
    ece: float
    """Expected calibration error, in [0, 1]; 0 is best."""
    nll: float
    """Mean negative log-likelihood of the true class, >= 0, natural logarithm; 0 is best."""


def measure(logits: Logits, labels: Labels, temperature: float = 1.0) -> Quality:
    """Return how good the probabilities of a temperature, which is above 0, are.

    Raises:
        ValueError: the arrays do not fit, or the temperature is out of range.
    """
    logits = _checked(logits, labels)
    probabilities = softmax(logits, temperature)
    surest = logits.argmax(axis=1)  # rounding can make probabilities equal that are not
    return Quality(
        pictures=len(labels),
        accuracy=float((surest == labels).mean()),
        ece=ece(probabilities, labels),
        nll=_nll(logits, labels, 1 / temperature),
    )


def ece(probabilities: NDArray[np.float64], labels: Labels) -> float:
    """Return the expected calibration error of probabilities `[N, classes]`, in [0, 1].

    Images are put into bins of equal width by the probability of their surest class. The error
    is the mean distance between that probability and the share that is right, over the bins by
    their images: Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using
    Bayesian Binning", AAAI 2015.
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)  # each with its upper bound
    gaps = np.abs(np.bincount(bins, right, BINS) - np.bincount(bins, sure, BINS))
    return float(min(gaps.sum() / len(labels), 1.0))


def nll(logits: Logits, labels: Labels, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of the true classes, >= 0, natural logarithm.

    Raises:
        ValueError: the arrays do not fit, or the temperature is not above 0.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be above 0 and finite, is {temperature}")
    return _nll(_checked(logits, labels), labels, 1 / temperature)


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature with the least negative log-likelihood, within `TEMPERATURES`.

    In 1 / T the likelihood is convex, so its slope has one zero at most. That is found by Newton's
    steps, and by halving wherever one would leave the interval that holds it. A bound comes back
    where the slope has no zero, such as the lower one when every image is classified right: then
    being surer always pays.

    Raises:
        ValueError: the arrays do not fit.
    """
    logits = _checked(logits, labels)
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    inverse = 1.0
    if _slope(logits, labels, inverse)[0] == 0:
        return 1.0  # the best already, or nothing makes a difference
    if _slope(logits, labels, low)[0] >= 0:
        return TEMPERATURES[1]
    if _slope(logits, labels, high)[0] <= 0:
        return TEMPERATURES[0]
    for _ in range(_STEPS):
        slope, curvature = _slope(logits, labels, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else low
        after = step if low < step < high else (low + high) / 2
        if abs(after - inverse) <= _PRECISE * inverse:
            break
        inverse = after
    return 1 / inverse


def _checked(logits: Logits, labels: Labels) -> Logits:
    """Return the logits, none of them so low that it could not be told from impossible."""
    if logits.ndim != 2 or not logits.size or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be [N, classes] and labels [N], are {list(logits.shape)} and "
            f"{list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}")
    highest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        raise ValueError("logits must be finite or minus infinity, one of each row finite")
    # A softmax inside the network rounds what is very small to 0: no reason for an infinite loss.
    shifted: Logits = np.maximum(logits - highest, -_LEAST)
    return shifted


def _nll(shifted: Logits, labels: Labels, inverse: float) -> float:
    scaled = shifted * inverse
    true = scaled[np.arange(len(labels)), labels]
    return float((np.log(np.exp(scaled).sum(axis=1)) - true).mean())


def _slope(shifted: Logits, labels: Labels, inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean NLL by 1 / T."""
    probabilities = softmax(shifted, 1 / inverse)
    mean = (probabilities * shifted).sum(axis=1)
    variance = (probabilities * (shifted - mean[:, None]) ** 2).sum(axis=1)
    true = shifted[np.arange(len(labels)), labels]
    return float((mean - true).mean()), float(variance.mean())
