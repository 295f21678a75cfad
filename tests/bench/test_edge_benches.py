"""The benchmarks of the edge run, and print a JSON line each with the figures that people quote."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(module: str, *flags: str) -> dict[str, Any]:
    """Return the one line that a program prints."""
    (line,) = run_lines(module, *flags)
    return line


def run_lines(module: str, *flags: str) -> list[dict[str, Any]]:
    """Return the lines that a program prints."""
    result = subprocess.run(
        [sys.executable, "-m", f"bench.{module}", *flags],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(line.pop("bench") == module for line in lines)
    return lines


@pytest.mark.parametrize("task", ["detect", "segment", "pose"])
def test_log_call(task: str) -> None:
    figures = run("log_call", "--seconds", "0.3", "--task", task)
    assert figures.pop("task") == task
    assert figures.pop("spooled") == figures.pop("calls") == 300
    shares = [f"{who}{share}_us" for who in ("", "otel_") for share in ("p50", "p99", "p999")]
    assert set(figures) == {*shares, "ratio_to_otel_p50", "record_us", "otel_record_us"}
    assert all(value > 0 for value in figures.values())


def test_encode() -> None:
    figures = run("encode", "--records", "50", "--rounds", "2")
    assert figures.pop("runtime") == "upb"
    kinds = ("us", "upb_us", "ratio_to_upb")
    cases = ("0", "3", "30", "30_arrays", "3_segment", "3_pose")
    assert set(figures) == {f"{kind}_{case}" for kind in kinds for case in cases}
    assert all(value > 0 for value in figures.values())


def test_edge_cost() -> None:
    figures = run("edge_cost", "--predictions", "1000", "--rounds", "1", "--backlog", "1000")
    assert (figures["predictions"], figures["backlog"]) == (1000, 1000)
    assert 0 < figures["cpu_us_per_prediction"] < 1000
    assert 0 < figures["gzip_cpu_us_per_prediction"] < 1000
    assert 100 < figures["wire_bytes_per_prediction"] < 500
    for task in ("segment", "pose"):
        assert figures[f"{task}_cpu_us_per_prediction"] > 0
        assert figures[f"{task}_wire_bytes_per_prediction"] > 100
    assert figures["gzip_bytes_ratio"] < 0.6  # or nothing was compressed
    assert figures["rss_growth_mib"] >= 0
    assert figures["rss_build_peak_mib"] >= figures["rss_before_drain_mib"] - 1 > 0


def test_detector_loop() -> None:
    pytest.importorskip("ultralytics")
    folder = os.environ.get("SIGHTLINE_TEST_MODELS")
    if not folder or not (Path(folder) / "yolov8n_int8.onnx").exists():
        pytest.skip("SIGHTLINE_TEST_MODELS names no folder with yolov8n_int8.onnx")
    figures = run("detector_loop", "--rounds", "1", "--frames", "1")
    assert (figures["rounds"], figures["frames"]) == (1, 1)
    names = [
        f"{kind}_{case}"
        for kind in ("fps_ratio", "cpu_ratio", "log_p50_us")
        for case in ("up", "away")
    ]
    for name in ("fps", *names):
        assert figures[name] > 0


def test_coordinator() -> None:
    figures = run("coordinator", "--pictures", "30")
    assert figures["pictures"] == 30
    assert {"added_p50_ms", "added_p99_ms", "hedged_p99_ms", "auto_p99_ms"} < set(figures)
    assert 0 < figures["cascade_bytes_ratio"] < 1
    assert 0 <= figures["device_agreement"] <= 1
    assert figures["device_agreement"] <= figures["cascade_agreement"] <= 1


def test_log_results() -> None:
    pytest.importorskip("ultralytics")
    figures = run("log_results", "--rounds", "2")
    tasks = ("detect", "segment", "segment_rle", "pose", "obb")
    for task in tasks:
        assert figures[f"{task}_p50_us"] > 0
        assert figures[f"{task}_bytes"] > 0
    assert figures["objects"] == 10
