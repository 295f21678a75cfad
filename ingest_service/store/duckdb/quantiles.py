"""Quantiles of bucketed inference times, with an error of at most 1 %. Pure."""

import itertools
import math
from collections.abc import Sequence

from ingest_service.store.duckdb.rollup_sql import BUCKET_RATIO, ZERO_BUCKET

QUANTILES = (0.5, 0.95, 0.99)


def quantile(counts: Sequence[tuple[int, int]], fraction: float) -> float:
    """Return a quantile in s of bucketed times, with an error of at most 1 %.

    Args:
        counts: buckets in ascending order, each with its number of times, >= 1.
        fraction: in [0, 1]; between two times it is interpolated, as by `quantile_cont`.
    """
    place = fraction * (sum(count for _, count in counts) - 1)
    low, high = (_bucket_at(counts, rank) for rank in (math.floor(place), math.ceil(place)))
    return between(low, high, place)


def between(low: int, high: int, place: float) -> float:
    """Return the time in s at a place between two ranks, whose buckets are `low` and `high`."""
    first, second = (_time_of(bucket) for bucket in (low, high))
    return first + (second - first) * (place - math.floor(place))


def _time_of(bucket: int) -> float:
    """Return the middle of a bucket, s."""
    return 0.0 if bucket == ZERO_BUCKET else float(BUCKET_RATIO ** (bucket + 0.5))


def _bucket_at(counts: Sequence[tuple[int, int]], rank: int) -> int:
    """Return the bucket that holds the time of this rank, counted from 0."""
    ends = itertools.accumulate(count for _, count in counts)
    return next(bucket for (bucket, _), end in zip(counts, ends, strict=True) if rank < end)
