"""Exponential back-off with full jitter, for callers that wait between retries in their own way."""

import random
from collections.abc import Callable

_MAX_DOUBLINGS = 64
"""Enough for every ratio of `maximum` to `first`; more would overflow a float at some retry."""


def full_jitter(first: float = 0.1, maximum: float = 2.0) -> Callable[[int], float]:
    """Return a function that draws the wait before retry 1, 2, ... in seconds.

    The wait before retry n is uniformly random between 0 and `first * 2 ** (n - 1)`, but at most
    `maximum`, so that devices that failed together do not retry together ("Full Jitter" in
    M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). Where a call is
    retried in a loop, tenacity does it (`edge.ship.shipper`); this function is for retries that a
    state machine schedules.

    Args:
        first: upper bound of the first wait in seconds, > 0.
        maximum: upper bound of every wait in seconds, >= `first`.
    """

    def draw(retry: int) -> float:
        ceiling = min(first * 2.0 ** min(retry - 1, _MAX_DOUBLINGS), maximum)
        return random.uniform(0.0, ceiling)  # noqa: S311 - jitter, not cryptography

    return draw
