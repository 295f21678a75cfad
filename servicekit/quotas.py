"""Quotas of callers, as settings state them. `servicekit.calls.limits` enforces them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_MAX_RATE = 1e9
_NUMBER = r"\d{1,10}(?:\.\d{1,9})?"
_METHOD_LIMIT = re.compile(
    rf"(?P<method>[A-Za-z]\w*)\s*=\s*(?P<rate>{_NUMBER})/s(?::(?P<burst>\d{{1,10}}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Quota:
    """The size and the rate of a token bucket."""

    per_second: float
    """Above 0."""
    burst: float
    """Number that may be used at once after a pause, above 0."""
    unit: Literal["messages", "bytes", "calls"]
    """The unit that is counted."""
    method: str = ""
    """Full name, `/package.Service/Method`, of the only method that is counted; empty: all are."""

    def __str__(self) -> str:
        counted = f"{self.unit} of {self.method.rpartition('/')[2]}" if self.method else self.unit
        return f"{self.per_second:g} {counted} per second, {self.burst:g} at once"

    def counts(self, method: str) -> bool:
        """Return True if the quota counts calls of this full method."""
        return self.method in {"", method}


def parse_method_limits(words: Sequence[str]) -> Mapping[str, Quota]:
    """Return the quotas of words such as `Infer=20/s:40`, by the method's short name.

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
