import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_service.store.duckdb.quantiles import quantile
from ingest_service.store.duckdb.read_plan import join_ranges
from ingest_service.store.duckdb.rollup_sql import BUCKET_RATIO, ZERO_BUCKET
from ingest_service.store.duckdb.rollups import (
    BLOCK_US,
    MERGED_AT_ONCE,
    MERGED_BLOCK,
    Block,
    mergeable,
)

SPANS = st.lists(st.tuples(st.integers(1, BLOCK_US), st.integers(1, MERGED_BLOCK)), max_size=60)


def blocks_of(*spans: tuple[int, int]) -> list[Block]:
    """Return neighbouring blocks of these lengths (us) and sizes."""
    blocks, after = [], 0
    for length, predictions in spans:
        blocks.append(Block(after, after + length, predictions))
        after += length
    return blocks


def merged(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks after every merge that is worth it."""
    left = list(blocks)
    while run := mergeable(left):
        at = left.index(run[0])
        whole = Block(run[0].after, run[-1].through, sum(block.predictions for block in run))
        left[at : at + len(run)] = [whole]
    return left


@given(SPANS)
def test_merging_keeps_every_prediction_and_the_bounds(spans: list[tuple[int, int]]) -> None:
    before = blocks_of(*spans)
    after = merged(before)
    assert sum(block.predictions for block in after) == sum(block.predictions for block in before)
    assert all(a.through == b.after for a, b in itertools.pairwise(after))
    for block in set(after) - set(before):
        assert block.predictions <= MERGED_BLOCK
        assert block.through - block.after <= BLOCK_US


def test_blocks_stay_few_under_full_load() -> None:
    blocks: list[Block] = []
    for at in range(1000):
        blocks = merged([*blocks, Block(at * 10**6, (at + 1) * 10**6, 50_000)])
    assert len(blocks) < 50_000_000 / MERGED_BLOCK * 1.1 + MERGED_AT_ONCE


@pytest.mark.parametrize("count", [0, 1, MERGED_AT_ONCE - 1])
def test_few_blocks_that_may_still_grow_are_left_alone(count: int) -> None:
    assert not mergeable(blocks_of(*[(10, 10)] * count))


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e6)), min_size=1, max_size=200),
    st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]),
)
def test_a_quantile_of_buckets_is_within_a_percent(times: list[float], fraction: float) -> None:
    numbers = [
        math.floor(math.log(time) / math.log(BUCKET_RATIO)) if time else ZERO_BUCKET
        for time in times
    ]
    counts = sorted((number, numbers.count(number)) for number in set(numbers))
    expected = float(np.quantile(times, fraction))
    assert quantile(counts, fraction) == pytest.approx(expected, rel=0.01)


@given(st.lists(st.booleans(), max_size=100), st.integers(2, 8))
def test_joined_ranges_cover_what_they_join(chosen: list[bool], limit: int) -> None:
    blocks = [(at, at + 1) for at, wanted in enumerate(chosen) if wanted]
    ranges = join_ranges(blocks, limit)
    assert all(any(a <= after and through <= b for a, b in ranges) for after, through in blocks)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))


def test_only_the_widest_gaps_keep_ranges_apart() -> None:
    blocks = [(0, 1), (1, 2), (5, 6), (100, 101), (103, 104)]
    assert join_ranges(blocks, 2) == [(0, 6), (100, 104)]
    assert join_ranges(blocks) == [(0, 2), (5, 6), (100, 101), (103, 104)]
