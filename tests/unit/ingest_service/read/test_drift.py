import math
import random

import pytest

from ingest_service.read.drift import CHI_SQUARED_999, chance_index, stability_index

BINS = 20


def test_equal_shares_have_no_index() -> None:
    assert stability_index([5] * BINS, [5] * BINS) == 0
    assert stability_index([5] * BINS, [500] * BINS) == pytest.approx(0, abs=1e-12)


def test_the_index_is_that_of_the_definition() -> None:
    current, reference = [3, 0, *[1] * 18], [0, 8, *[2] * 18]
    n, m = sum(current) + 10, sum(reference) + 10
    expected = sum(
        ((c + 0.5) / n - (r + 0.5) / m) * math.log((c + 0.5) / n / ((r + 0.5) / m))
        for c, r in zip(current, reference, strict=True)
    )
    assert stability_index(current, reference) == pytest.approx(expected)
    assert stability_index(reference, current) == pytest.approx(expected)


@pytest.mark.parametrize("index", [stability_index, chance_index])
def test_an_empty_side_has_no_index(index: object) -> None:
    assert callable(index)
    assert index([0] * BINS, [1] * BINS) is None
    assert index([1] * BINS, [0] * BINS) is None


def test_the_percentile_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    assert pytest.approx(stats.chi2.ppf(0.999, BINS - 1), abs=5e-5) == CHI_SQUARED_999
    assert chance_index([10] * BINS, [1] * BINS) == pytest.approx(
        CHI_SQUARED_999 * (1 / 200 + 0.05)
    )


def test_chance_alone_seldom_exceeds_the_index_of_chance() -> None:
    chance, exceeded = random.Random(1), 0
    for _ in range(300):
        sides = []
        for size in (400, 2000):
            counts = [0] * BINS
            for number in chance.choices(range(BINS), range(1, BINS + 1), k=size):
                counts[number] += 1
            sides.append(counts)
        index, bound = stability_index(*sides), chance_index(*sides)
        assert index is not None
        assert bound is not None
        exceeded += index > bound
    assert exceeded <= 3
