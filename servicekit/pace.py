"""A rate limit of costly calls for each peer: a token bucket each. Pure."""

from collections import OrderedDict

_MAX_PEERS = 10_000  # beyond this the least recent is forgotten, and its debt with it


class Pace:
    """Token buckets by peer, which may go into debt: a peer in debt waits until it is paid.

    Args:
        per_second: tokens that each peer gets, above 0.
        burst: tokens that it has after a rest.
        longest: maximum delay, s.
    """

    def __init__(self, per_second: float, burst: int, longest: float) -> None:
        self._per_second = per_second
        self._burst_seconds = burst / per_second
        self._longest = longest
        self._full_at: OrderedDict[str, float] = OrderedDict()
        """Time at which each peer's bucket will be full again."""

    def delay(self, peer: str, now: float) -> float:
        """Take a token and return how long the peer has to wait for it, s, 0 or more.

        Args:
            peer: key of the peer, such as the address of the other end.
            now: seconds on any clock that does not go back.
        """
        full_at = max(self._full_at.get(peer, now), now) + 1 / self._per_second
        self._full_at[peer] = min(full_at, now + self._burst_seconds + self._longest)
        self._full_at.move_to_end(peer)
        if len(self._full_at) > _MAX_PEERS:
            self._full_at.popitem(last=False)
        return min(max(full_at - now - self._burst_seconds, 0.0), self._longest)
