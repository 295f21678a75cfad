"""The arithmetic of the figures: calls and bytes in, ratios out. Pure."""

from collections import Counter
from collections.abc import Sequence

from bench.infer.figures import OK, Call


def in_time_ratio(calls: Sequence[Call]) -> float:
    """Return the share of the calls that were answered within their deadline."""
    return round(sum(call.code == OK for call in calls) / len(calls), 3)


def p99_ms(calls: Sequence[Call], deadline: float) -> float:
    """Return the 99th percentile of the latency; a call that failed took its whole deadline."""
    times = sorted(call.latency if call.code == OK else deadline for call in calls)
    return round(times[min(int(len(times) * 0.99), len(times) - 1)] * 1e3, 1)


def codes(calls: Sequence[Call]) -> dict[str, int]:
    """Return the number of calls by status code."""
    return dict(Counter(call.code for call in calls))


def memory_ratio(idle_mib: float, peak_mib: float, bound_mib: float) -> float:
    """Return the memory beyond the idle size, divided by the stated bound."""
    return round(max(peak_mib - idle_mib, 0.0) / bound_mib, 3)
