import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference
from prometheus_client.samples import Sample

from servicekit.telemetry.histograms import Histograms

BOUNDS = (0.5, 1.0, 2.5, 10)


def samples(registry: CollectorRegistry) -> set[tuple[str, frozenset[tuple[str, str]], float]]:
    """Return the scraped text, without the start times that only the reference has."""

    def plain(sample: Sample) -> tuple[str, frozenset[tuple[str, str]], float]:
        return sample.name, frozenset(sample.labels.items()), sample.value

    found = {plain(sample) for metric in registry.collect() for sample in metric.samples}
    return {sample for sample in found if not sample[0].endswith("_created")}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from([*BOUNDS, 0.0, 1.5, 11.0, math.inf]) | st.floats(0, 20),
        )
    )
)
def test_it_is_scraped_like_the_histogram_of_prometheus_client(
    values: list[tuple[str, float]],
) -> None:
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    histograms = Histograms("x_seconds", "Time, s", ("kind",), BOUNDS, mine)
    reference = Reference("x_seconds", "Time, s", ("kind",), buckets=BOUNDS, registry=theirs)
    for kind, value in values:
        histograms.of(kind).observe(value)
        reference.labels(kind).observe(value)
    assert samples(mine) == samples(theirs)


def test_no_value_is_lost_between_threads() -> None:
    registry = CollectorRegistry()
    histograms = Histograms("x_seconds", "Time, s", ("kind",), BOUNDS, registry)

    def observe() -> None:
        for _ in range(2000):
            histograms.of("a").observe(0.7)

    threads = [threading.Thread(target=observe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.get_sample_value("x_seconds_count", {"kind": "a"}) == 16_000
    assert registry.get_sample_value("x_seconds_bucket", {"kind": "a", "le": "0.5"}) == 0
    assert registry.get_sample_value("x_seconds_sum", {"kind": "a"}) == pytest.approx(11_200)


def test_two_of_one_name_are_refused() -> None:
    registry = CollectorRegistry()
    Histograms("x_seconds", "Time, s", ("kind",), BOUNDS, registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Histograms("x_seconds", "Time, s", ("kind",), BOUNDS, registry)
