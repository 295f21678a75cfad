"""Every alert of `deploy/prometheus/sightline.rules.yml`, by Prometheus' own `promtool`.

Each has series with which it fires and others, as near to them as can be, with which it does not.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.compat.conftest import ROOT
from tests.pages import text

DEPLOY = ROOT / "deploy/prometheus"
RULES = DEPLOY / "sightline.rules.yml"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
}
INFER = 'service="sightline.inference.v1.InferenceService",method="Infer"'
SPOOL = "sightline_edge_log_spool"
ABOVE = "0+10x60"


class Case(NamedTuple):
    """Series of one alert, one value a minute, by their names; `at`: when it is looked at."""

    fires: Mapping[str, str]
    quiet: Mapping[str, str]
    at: str = "20m"


def calls(code: str, per_minute: int) -> dict[str, str]:
    ok = {f'sightline_grpc_requests_total{{{INFER},code="OK"}}': "0+100x60"}
    return {
        **ok,
        f'sightline_grpc_requests_total{{{INFER},code="{code}"}}': f"0+{per_minute}x60",
    }


def slow(name: str, labels: str, bound: str, within: int) -> dict[str, str]:
    """Return a histogram with 100 values a minute, `within` of them up to a bound."""
    return {
        f'{name}_bucket{{{labels}le="{bound}"}}': f"0+{within}x60",
        f'{name}_bucket{{{labels}le="10.0"}}': "0+100x60",
        f'{name}_bucket{{{labels}le="+Inf"}}': "0+100x60",
    }


def counter(name: str) -> Case:
    """Return a counter whose every increase fires, and that keeps an old value else."""
    return Case({name: "7x10 8x50"}, {name: "8x60"})


def gauge(name: str, over: str, under: str) -> Case:
    return Case({name: f"{over}x60"}, {name: f"{under}x60"})


CASES = {
    "ServiceDown": Case(
        {'up{job="sightline-ingest"}': "1x5 0x50"},
        {'up{job="sightline-inference"}': "1x60", 'up{job="another"}': "0x60"},
        "8m",
    ),
    "Errors": Case(calls("UNAVAILABLE", 6), {**calls("INTERNAL", 5), **calls("NOT_FOUND", 900)}),
    "InferSlow": Case(
        slow("sightline_grpc_request_seconds", f"{INFER},", "5.0", 94),
        slow("sightline_grpc_request_seconds", f"{INFER},", "5.0", 95),
    ),
    "InferShed": Case(
        {'sightline_inference_shed_total{reason="QUEUE_FULL"}': ABOVE},
        {'sightline_inference_shed_total{reason="QUEUE_FULL"}': "9x60"},
    ),
    "IdempotencyRows": gauge("sightline_inference_idempotency_rows", "1000001", "1000000"),
    "ModelLoadFailed": Case(
        {'sightline_inference_model_load_failures_total{model="m"}': "_x10 1x50"},
        {'sightline_inference_model_load_failures_total{model="m"}': "1x60"},
    ),
    "CommitFailures": Case(
        {"sightline_ingest_commit_failures_total": ABOVE},
        {"sightline_ingest_commit_failures_total": "3x60"},
    ),
    "CommitSlow": Case(
        slow("sightline_ingest_commit_seconds", "", "1.0", 98),
        slow("sightline_ingest_commit_seconds", "", "1.0", 99),
    ),
    "LossesDeclared": Case(
        {'sightline_ingest_gap_sequences_total{reason="spool_bytes"}': "0x10 5x50"},
        {
            'sightline_ingest_gap_sequences_total{reason="spool_bytes"}': "5x60",
            'sightline_ingest_gap_sequences_total{reason="released"}': ABOVE,
        },
    ),
    "NodesAhead": counter("sightline_ingest_streams_ahead_total"),
    "SequenceConflict": counter('sightline_ingest_sequence_conflicts_total{kind="content"}'),
    "LedgerUnbalanced": gauge("sightline_ingest_ledger_unbalanced_devices", "1", "0"),
    "Rejections": Case(
        {
            'sightline_ingest_rejected_total{reason="SOURCE_REQUIRED"}': "0+2x60",
            "sightline_ingest_predictions_total": "0+100x60",
        },
        {
            'sightline_ingest_rejected_total{reason="SOURCE_REQUIRED"}': "0+1x60",
            "sightline_ingest_predictions_total": "0+100x60",
        },
    ),
    "DeviceSilent": Case(
        {'sightline_ingest_device_last_received_timestamp_seconds{device="gate-1"}': "240x60"},
        {'sightline_ingest_device_last_received_timestamp_seconds{device="gate-1"}': "300x60"},
    ),
    "DeviceSeriesFull": counter("sightline_ingest_device_series_refused_total"),
    "UpkeepFailing": Case(
        {'sightline_ingest_upkeep_failures_total{task="expire"}': "0 0 0 1 1 1 2 2 2 3x60"},
        {'sightline_ingest_upkeep_failures_total{task="expire"}': "0x10 1x50"},
    ),
    "ClockMoved": gauge("sightline_retention_held_seconds", "60", "0"),
    "NodeDown": Case(
        {'up{job="sightline-edge"}': "1x5 0x50"}, {'up{job="sightline-edge"}': "1x60"}
    ),
    "SpoolFilling": Case(
        {f"{SPOOL}_bytes": "81x60", f"{SPOOL}_limit_bytes": "100x60"},
        {f"{SPOOL}_bytes": "80x60", f"{SPOOL}_limit_bytes": "100x60"},
    ),
    "NodeCannotShip": Case(
        {"sightline_edge_log_backlog": ABOVE, "sightline_edge_log_committed_total": "5x60"},
        {"sightline_edge_log_backlog": ABOVE, "sightline_edge_log_committed_total": "0+1x60"},
        "50m",
    ),
    "NodeDropped": counter('sightline_edge_log_dropped_total{reason="spool_age"}'),
    "SourceLost": Case(
        {'sightline_edge_source_state{source="cam",state="lost"}': "1x60"},
        {
            'sightline_edge_source_state{source="cam",state="lost"}': "0x60",
            'sightline_edge_source_state{source="cam",state="reading"}': "1x60",
        },
    ),
    "SourceDamaged": counter('sightline_edge_source_damaged_frames_total{source="cam"}'),
    "BreakerOpen": Case(
        {'sightline_edge_breaker_state{state="open"}': "1x60"},
        {
            'sightline_edge_breaker_state{state="open"}': "0x60",
            'sightline_edge_breaker_state{state="closed"}': "1x60",
        },
    ),
}


def unit_test(alert: str, series: Mapping[str, str], at: str, samples: list[Any]) -> dict[str, Any]:
    """Return a test of promtool: the number of firing alerts of this name."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="Sightline{alert}",alertstate="firing"}})',
                "eval_time": at,
                "exp_samples": samples,
            }
        ],
    }


def run_promtool(promtool: str, folder: Path, tests: list[dict[str, Any]]) -> str:
    """Return what promtool says about tests of the rules; empty: they pass."""
    file = folder / "tests.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


def test_every_alert_has_a_case_and_is_on_the_page() -> None:
    assert {f"Sightline{name}" for name in CASES} == ALERTS.keys()
    on_page = re.findall(r"^\| `(Sightline\w+)` \|", text("how-to/monitor.md"), re.MULTILINE)
    assert sorted(on_page) == sorted(ALERTS)


def test_the_files_are_those_of_prometheus(promtool: str) -> None:
    for kind, path in (("rules", RULES), ("config", DEPLOY / "prometheus.yml")):
        done = subprocess.run([promtool, "check", kind, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_every_alert_fires_and_does_not_fire(promtool: str, tmp_path: Path) -> None:
    one = [{"labels": "{}", "value": 1}]
    tests = [unit_test(name, case.fires, case.at, one) for name, case in CASES.items()]
    tests += [unit_test(name, case.quiet, case.at, []) for name, case in CASES.items()]
    assert not run_promtool(promtool, tmp_path, tests)


def test_an_alert_that_does_not_fire_is_found(promtool: str, tmp_path: Path) -> None:
    one = [{"labels": "{}", "value": 1}]
    case = CASES["Errors"]
    assert "SightlineErrors" in run_promtool(
        promtool, tmp_path, [unit_test("Errors", case.quiet, case.at, one)]
    )


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_says_what_to_do_on_a_page_that_there_is(name: str) -> None:
    annotations = ALERTS[name]["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    assert ALERTS[name]["labels"]["severity"] in {"warning", "critical"}
    page, _, anchor = annotations["page"].partition("#")
    titles = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
    assert not anchor or anchor in anchors
