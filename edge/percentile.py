"""Percentiles of few values."""

import math
from collections.abc import Sequence


def nearest_rank(ordered: Sequence[float], share: float) -> float | None:
    """Return the least value that `share` of all do not exceed (nearest rank).

    Args:
        ordered: the values, rising.
        share: in (0, 1].

    Returns:
        None: there are no values.
    """
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
