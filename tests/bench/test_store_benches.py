"""The benchmarks of a large store run, and print a JSON line with the figures that people quote."""

from tests.bench.test_edge_benches import run

SMALL = ("--seconds", "1", "--streams", "6")


def test_growth() -> None:
    rows = ("--rows", "100000", "--small-rows", "50000", "--rounds", "1")
    found = run("growth", *rows, *SMALL)
    assert {"rate_0.05m_per_s", "rate_0.1m_per_s", "ratio_0.1m_to_0.05m"} < set(found)
    assert all(value > 0 for value in found.values())


def test_reads() -> None:
    found = run("reads", "--rows", "100000", *SMALL)
    assert {"stats_p95_ms", "list_p95_ms", "predictions_per_s"} < set(found)
    assert all(value > 0 for value in found.values())
