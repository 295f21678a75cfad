"""The population stability index of two histograms, and what chance alone gives. Pure."""

import math
from collections.abc import Sequence

SMOOTHING = 0.5
"""Count that is added to each bin, so that an empty bin has a logarithm."""
CHI_SQUARED_999 = 43.8202
"""The 99.9th percentile of the chi-squared distribution with 19 degrees of freedom, for 20 bins.
Source: NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.4."""


def stability_index(current: Sequence[int], reference: Sequence[int]) -> float | None:
    """Return the population stability index of two histograms; None: one of them is empty.

    It is the sum over the bins of (p - q) ln(p / q), where p and q are the shares of a bin, with
    `SMOOTHING` added to each count. 0: the shares are equal.

    Args:
        current: counts by bin, >= 0.
        reference: counts by the same bins.
    """
    if not any(current) or not any(reference):
        return None
    sides = zip(_shares(current), _shares(reference), strict=True)
    return sum((p - q) * math.log(p / q) for p, q in sides)


def chance_index(current: Sequence[int], reference: Sequence[int]) -> float | None:
    """Return the index that independent samples of one distribution exceed once in 1000 times.

    The index of two samples of sizes n and m is distributed about as (1 / n + 1 / m) times
    chi-squared with bins - 1 degrees of freedom. Source: B. Yurdakul, Statistical Properties of
    Population Stability Index, Western Michigan University, 2018.

    Args:
        current: counts by 20 bins, >= 0.
        reference: counts by the same bins.

    Returns:
        None: one of them is empty.
    """
    n, m = sum(current), sum(reference)
    return (1 / n + 1 / m) * CHI_SQUARED_999 if n and m else None


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + SMOOTHING * len(counts)
    return [(count + SMOOTHING) / total for count in counts]
