"""How long to wait before a retry: exponential with full jitter."""

from collections.abc import Callable

from tenacity import RetryCallState, Retrying, wait_random_exponential


def full_jitter(first: float = 0.1, most: float = 2.0) -> Callable[[int], float]:
    """Return a function that draws the wait before retry 1, 2, ... in seconds.

    Retry n waits a uniformly random time between 0 and `first * 2 ** (n - 1)`, at most `most`, so
    that devices which failed together do not come back together ("Full Jitter" in M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Args:
        first: upper bound of the first wait in seconds, > 0.
        most: upper bound of every wait in seconds, >= `first`.
    """
    wait = wait_random_exponential(multiplier=first, max=most)

    def seconds(retry: int) -> float:
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = retry
        return wait(state)

    return seconds
