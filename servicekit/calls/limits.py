"""How much each caller may send: calls, messages and bytes per second, no limit by default.

Token buckets of our own and no library: a moving window keeps an entry for every byte, and a window
of either kind refuses for ever what is larger than itself.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import grpc

from servicekit.auth.caller import Caller
from servicekit.errors import QuotaViolation, SightlineError

_MAX_CALLERS = 10_000  # the least recent is forgotten beyond this, which gives it full buckets
_MAX_RATE = 1e9
_NUMBER = r"\d{1,10}(?:\.\d{1,9})?"
_METHOD_LIMIT = re.compile(
    rf"(?P<method>[A-Za-z]\w*)\s*=\s*(?P<rate>{_NUMBER})/s(?::(?P<burst>\d{{1,10}}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Quota:
    """What a bucket holds and how fast it fills."""

    per_second: float
    """Above 0."""
    burst: float
    """What may be taken at once after a rest, above 0."""
    unit: Literal["messages", "bytes", "calls"]
    """What is counted."""
    method: str = ""
    """Full name, `/package.Service/Method`, of the only method that is counted; empty: all are."""

    def __str__(self) -> str:
        what = f"{self.unit} of {self.method.rpartition('/')[2]}" if self.method else self.unit
        return f"{self.per_second:g} {what} per second, {self.burst:g} at once"

    def counts(self, method: str) -> bool:
        """Return whether calls of this full method are this quota's business."""
        return self.method in {"", method}


_A_CALL: Mapping[str, float] = {"calls": 1, "messages": 1}
"""What a call costs when it begins: itself and its first message, but for the bytes."""


@dataclass(slots=True)
class _Buckets:
    """A caller's, in the order of the quotas."""

    tokens: list[float]
    filled_at: float


class CallerLimits:
    """Token buckets, one per caller and quota. Pure: the time comes in as an argument.

    A bucket is full at first. A message passes if every bucket holds what it costs, and then takes
    it. What costs more than a whole bucket passes when the bucket is full, and leaves a debt: no
    message is too large to pass ever.
    """

    def __init__(
        self,
        messages_per_second: float,
        messages_burst: int,
        bytes_per_second: float,
        methods: Sequence[Quota] = (),
    ) -> None:
        """0 messages or bytes per second: no limit on them; `methods`: further quotas."""
        quotas = (
            Quota(messages_per_second, messages_burst, "messages"),
            Quota(bytes_per_second, bytes_per_second, "bytes"),
            *methods,
        )
        self._quotas = [quota for quota in quotas if quota.per_second]
        self._buckets: OrderedDict[str, _Buckets] = OrderedDict()

    @property
    def off(self) -> bool:
        """Whether nothing is limited."""
        return not self._quotas

    def charge_call(self, caller: Caller, now: float, method: str = "") -> None:
        """Charges a caller for a call that begins, and for its first message but the bytes.

        A call counts from then on, whether its message comes or not. Who is in debt, for a message
        that was larger than a bucket, is refused before the next one is read.

        Args:
            caller: who makes it.
            now: seconds on any clock that does not go back.
            method: full name of the method.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `RATE_LIMITED`, with the seconds until it would
                have passed; nothing is charged.
        """
        self._charge(caller, now, method, _A_CALL)

    def charge_message(
        self, caller: Caller, size: int, now: float, method: str = "", *, first: bool = True
    ) -> None:
        """Charges a caller for a message that has come.

        Args:
            caller: who sent it.
            size: bytes, >= 0.
            now: as in `charge_call`.
            method: as in `charge_call`.
            first: whether it is the first of its call, and counted with that.

        Raises:
            SightlineError: as `charge_call`; what the call has cost is given back with the first
                message, or waiting as long as told would not be enough.
        """
        if not first:
            self._charge(caller, now, method, {"bytes": size, "messages": 1})
            return
        try:
            self._charge(caller, now, method, {"bytes": size})
        except SightlineError:
            buckets = self._filled(caller.identity, now)
            costs = self._costs(method, _A_CALL)
            buckets.tokens = [t + cost for t, cost in zip(buckets.tokens, costs, strict=True)]
            raise

    def _costs(self, method: str, given: Mapping[str, float]) -> list[float]:
        return [given.get(q.unit, 0) if q.counts(method) else 0 for q in self._quotas]

    def _charge(self, caller: Caller, now: float, method: str, given: Mapping[str, float]) -> None:
        costs = self._costs(method, given)
        buckets = self._filled(caller.identity, now)
        waits = [
            _wait(quota, cost, tokens)
            for quota, cost, tokens in zip(self._quotas, costs, buckets.tokens, strict=True)
        ]
        if any(waits):
            raise _refusal(caller, self._quotas, waits)
        buckets.tokens = [t - cost for t, cost in zip(buckets.tokens, costs, strict=True)]

    def _filled(self, caller: str, now: float) -> _Buckets:
        full = [quota.burst for quota in self._quotas]
        buckets = self._buckets.setdefault(caller, _Buckets(full, now))
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        passed = now - buckets.filled_at
        buckets.tokens = [
            min(quota.burst, tokens + passed * quota.per_second)
            for quota, tokens in zip(self._quotas, buckets.tokens, strict=True)
        ]
        buckets.filled_at = now
        return buckets


def parse_method_limits(words: Sequence[str]) -> Mapping[str, Quota]:
    """Returns the quotas of words such as `Infer=20/s:40`, by the method's short name.

    The number after the colon is the burst; without it, a second's worth, at least 1.

    Raises:
        ValueError: a word is not of that form, has no rate above 0 and up to 1e9, no burst of 1
            to 1e9, or names a method that another has named.
    """
    quotas: dict[str, Quota] = {}
    for word in words:
        match = _METHOD_LIMIT.fullmatch(word)
        if match is None:
            raise ValueError(f"must be like Infer=20/s or Infer=20/s:40 (got {word!r})")
        rate = float(match["rate"])
        burst = int(match["burst"]) if match["burst"] else max(int(rate), 1)
        if not 0 < rate <= _MAX_RATE or not 1 <= burst <= _MAX_RATE:
            raise ValueError(
                f"must have a rate above 0 and up to 1e9, and a burst of 1 to 1e9 (got {word!r})"
            )
        if match["method"] in quotas:
            raise ValueError(f"must name each method once (got {match['method']!r} twice)")
        quotas[match["method"]] = Quota(rate, burst, "calls")
    return quotas


def _wait(quota: Quota, cost: float, tokens: float) -> float:
    """Returns how long until the bucket holds what this costs, s."""
    wait = (min(cost, quota.burst) - tokens) / quota.per_second
    # Who has waited as long as it was told must not fail by a rounding error.
    return wait if wait > 1e-6 else 0.0


def _refusal(caller: Caller, quotas: Sequence[Quota], waits: Sequence[float]) -> SightlineError:
    exceeded = [str(quota) for quota, wait in zip(quotas, waits, strict=True) if wait]
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        f"caller {caller.name} is over its limit of {' and of '.join(exceeded)}",
        quotas=[QuotaViolation(f"caller:{caller.name}", quota) for quota in exceeded],
        retry_after=max(waits),
    )
