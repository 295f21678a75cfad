"""Percentiles of small samples."""

import math
from collections.abc import Sequence


def nearest_rank(ordered: Sequence[float], share: float) -> float | None:
    """Return a percentile by the nearest-rank method.

    Args:
        ordered: the values in ascending order.
        share: the percentile as a fraction in (0, 1].

    Returns:
        The smallest value that at least `share` of the values do not exceed. None: there are none.
    """
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
