"""Temperature scaling: calibration error of a classifier's probabilities, and its correction.

The temperature T divides the logits before the softmax. It changes the probabilities and never the
order of the classes, so that the accuracy stays the same. It is fitted by minimising the negative
log-likelihood, and measured by the expected calibration error on images that were not used for the
fit: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
sections 2 and 4.2. Pure.

In all functions `logits` are float64 `[N, classes]`, N >= 1, finite or minus infinity; `labels` are
int64 `[N]`, the true classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision import softmax

Logits = NDArray[np.float64]
Labels = NDArray[np.int64]

TEMPERATURES = (0.01, 100.0)
"""Lowest and highest temperature of a fit."""
BINS = 15
"""Number of bins of the expected calibration error, as in Guo et al."""
_STEPS = 100  # of the search, which usually takes ten
_PRECISION = 1e-9  # relative precision of 1 / T
_MAX_DROP = 104.0  # below the highest logit: float32 has no smaller probability than exp(-104)


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of a classifier's probabilities."""

    pictures: int
    accuracy: float
    """Fraction of images whose most probable class is true, in [0, 1]; independent of T."""
    ece: float
    """Expected calibration error, in [0, 1]; 0 is best."""
    nll: float
    """Mean negative log-likelihood of the true class, >= 0, natural logarithm; 0 is best."""


def measure(logits: Logits, labels: Labels, temperature: float = 1.0) -> Quality:
    """Return the quality of the probabilities at a temperature, which must be above 0.

    Raises:
        ValueError: the shapes do not match, or the temperature is out of range.
    """
    logits = _checked(logits, labels)
    probabilities = softmax(logits, temperature)
    best = logits.argmax(axis=1)  # not of the probabilities, which rounding can make equal
    return Quality(
        pictures=len(labels),
        accuracy=float((best == labels).mean()),
        ece=ece(probabilities, labels),
        nll=_nll(logits, labels, 1 / temperature),
    )


def ece(probabilities: NDArray[np.float64], labels: Labels) -> float:
    """Return the expected calibration error of probabilities `[N, classes]`, in [0, 1].

    Images are put into bins of equal width by the probability of their best class. The error is the
    mean distance between that probability and the accuracy in the bin, weighted by the number of
    images: Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using
    Bayesian Binning", AAAI 2015.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # upper bound inclusive
    gaps = np.abs(np.bincount(bins, correct, BINS) - np.bincount(bins, confidence, BINS))
    return float(min(gaps.sum() / len(labels), 1.0))


def nll(logits: Logits, labels: Labels, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of the true classes, >= 0, natural logarithm.

    Raises:
        ValueError: the shapes do not match, or the temperature is not above 0.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    return _nll(_checked(logits, labels), labels, 1 / temperature)


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature with the lowest negative log-likelihood, within `TEMPERATURES`.

    The loss is convex in 1 / T, so its slope has at most one zero. It is found by Newton steps, and
    by bisection if a step would leave the bracketing interval. If the slope has no zero, a bound is
    returned, e.g. the lower one if every image is classified correctly.

    Raises:
        ValueError: the shapes do not match.
    """
    logits = _checked(logits, labels)
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    inverse = 1.0
    if _slope(logits, labels, inverse)[0] == 0:
        return 1.0  # already optimal, or independent of T
    if _slope(logits, labels, low)[0] >= 0:
        return TEMPERATURES[1]
    if _slope(logits, labels, high)[0] <= 0:
        return TEMPERATURES[0]
    for _ in range(_STEPS):
        slope, curvature = _slope(logits, labels, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else low
        after = step if low < step < high else (low + high) / 2
        if abs(after - inverse) <= _PRECISION * inverse:
            break
        inverse = after
    return 1 / inverse


def _checked(logits: Logits, labels: Labels) -> Logits:
    """Return the logits relative to their maximum, clipped at `-_MAX_DROP`."""
    if logits.ndim != 2 or not logits.size or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be [N, classes] and labels [N], got {list(logits.shape)} and "
            f"{list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels must be in 0..{logits.shape[1] - 1}, got {labels.min()} to {labels.max()}"
        )
    highest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        raise ValueError("logits must be finite or minus infinity, at least one of each row finite")
    # A softmax inside the network rounds small values to 0, which must not make the loss infinite.
    shifted: Logits = np.maximum(logits - highest, -_MAX_DROP)
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
