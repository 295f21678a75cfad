"""How often each caller may ask: one token bucket per caller, none by default."""

from collections import OrderedDict
from dataclasses import dataclass

import grpc

from servicekit.errors import QuotaViolation, SightlineError

_MAX_CALLERS = 10_000  # the least recent is forgotten beyond this, which gives it a full bucket


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """Token buckets, one per caller. Pure: the time comes in as an argument.

    A bucket holds `burst` tokens, is full at first and gains `per_second` tokens a second; a call
    takes one.

    Args:
        per_second: calls per second that a caller may keep up, >= 0; 0: no limit.
        burst: calls that a caller may make at once after a rest, >= 1.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, caller: str, now: float) -> None:
        """Takes a token of the caller's.

        Args:
            caller: who calls.
            now: seconds on any clock that does not go back.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `RATE_LIMITED`, with the seconds until the next
                token.
        """
        if not self._per_second:
            return
        bucket = self._filled(caller, now)
        if bucket.tokens < 1:
            raise self._refusal(caller, (1 - bucket.tokens) / self._per_second)
        bucket.tokens -= 1

    def _filled(self, caller: str, now: float) -> _Bucket:
        bucket = self._buckets.setdefault(caller, _Bucket(self._burst, now))
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        gained = (now - bucket.filled_at) * self._per_second
        bucket.tokens = min(self._burst, bucket.tokens + gained)
        bucket.filled_at = now
        return bucket

    def _refusal(self, caller: str, retry_after: float) -> SightlineError:
        quota = f"{self._per_second:g} calls per second, {self._burst} at once"
        return SightlineError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "RATE_LIMITED",
            f"caller {caller} is over its limit of {quota}",
            quotas=[QuotaViolation(f"caller:{caller}", quota)],
            retry_after=retry_after,
        )
