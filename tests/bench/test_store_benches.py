"""The benchmarks of a large store run, and print a JSON line with the figures that people quote."""

from pathlib import Path

import duckdb
import uvloop

from bench.ingest import DEVICES, payloads, send, service
from tests.bench.test_edge_benches import run, run_lines

SMALL = ("--seconds", "0.5", "--streams", "3")


def test_growth() -> None:
    rows = ("--rows", "20000", "--small-rows", "10000", "--rounds", "1")
    line = run("growth", *rows, *SMALL)
    assert {"rate_0.01m_per_s", "rate_0.02m_per_s", "ratio_0.02m_to_0.01m"} < set(line)
    assert all(value > 0 for value in line.values())


def test_reads() -> None:
    line = run("reads", "--rows", "20000", *SMALL)
    assert {"stats_p95_ms", "list_p95_ms", "predictions_per_s"} < set(line)
    assert all(value > 0 for value in line.values())


def test_console() -> None:
    *panels, line = run_lines(
        "console", "--rows", "200000", "--rounds", "1", "--calls", "2", *SMALL
    )
    assert {"devices", "series", "frame", "confidence", "ledger"} < {p["panel"] for p in panels}
    assert all(panel["p95_ms"] > 0 for panel in panels)
    assert {"ingest_rate_ratio_with_three_tabs", "sql_commit_rate_ratio"} < set(line)
    assert (line["live_holes"], line["live_doubles"]) == (0, 0)
    assert line["sql_queries"] > 0


def test_sizing() -> None:
    line = run("sizing", "--devices", "2", "--rates", "3", "--seconds", "0.5")
    (cell,) = line.pop("cells")
    assert (cell["devices"], cell["rate"]) == (2, 3)
    assert {"predictions_per_s", "commits_per_s", "cpu_s_per_million", "rss_mib"} < set(cell)
    assert all(value > 0 for value in {**cell, **line.pop("full_rate")}.values())
    assert line == {}


def test_a_machine_that_is_too_fast_for_what_was_prepared_goes_on(tmp_path: Path) -> None:
    """Prepare eight predictions per device, which every machine sends in less than a second."""
    with service(tmp_path) as running:
        uvloop.run(send(running.address, [payloads(1, 8, 8)], 1.0))
    (database,) = tmp_path.glob("*.duckdb")
    with duckdb.connect(str(database), read_only=True) as connection:
        stored = connection.execute(
            "SELECT count(*), count(DISTINCT (spool_id, sequence)) FROM predictions"
        ).fetchone()
    assert stored is not None
    assert stored[0] == stored[1] > 8 * DEVICES
