"""`python -m bench.infer` runs, on real servers, and prints the figures that people quote."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.infer import accelerator, parts, servers
from bench.infer.__main__ import QUICK, REPOSITORY
from bench.infer.servers import GRPC, HTTP, OURS, RAW, Case
from models.plates import make_plate, to_jpeg
from vision.session_options import CPU

ROOT = Path(__file__).parents[2]
BEFORE = {OURS: "", **{name: f"{name}_" for name in (GRPC, HTTP, RAW)}}


def run(*flags: str) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "SIGHTLINE_TEST_MODELS"}
    result = subprocess.run(
        [sys.executable, "-m", "bench.infer", "--quick", *flags],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(row["bench"] == "infer" for row in rows)
    return rows


def test_the_usual_parts_of_the_demo_model() -> None:
    added, closed, light = run("--case", "plates")
    assert [row["part"] for row in (added, closed, light)] == ["added", "closed", "light"]
    for name in (OURS, GRPC, HTTP):
        assert f"{BEFORE[name]}added_p50_ms" in added
    assert added["replay_p50_ms"] > 0
    assert added["outside_work_p50_ms"] > 0
    for before in BEFORE.values():
        for callers in (4, 16):
            assert closed[f"{before}per_s_{callers}"] > 0
            assert closed[f"{before}p99_ms_{callers}"] > 0
            assert 1 < closed[f"{before}cpu_ms_{callers}"] < 1000
        assert closed[f"{before}rss_mib"] > 20
    ratios = [closed["throughput_ratio_4"], closed["throughput_ratio_16"]]
    assert closed["throughput_ratio"] == min(ratios) > 0
    assert light["light_ratio"] == pytest.approx(
        light["light_requests_per_s"] / light["bare_grpc_per_s"], abs=0.002
    )


def test_overload() -> None:
    rows = run("--case", "plates", "--only", "overload")
    assert [row["server"] for row in rows] == [OURS, GRPC, HTTP]
    for row in rows:
        calls = sum(row["codes"].values())
        assert calls / row["seconds"] == pytest.approx(row["offered_per_s"], abs=0.01)
        assert row["goodput_ratio_2x"] == pytest.approx(
            row["goodput_per_s"] / row["capacity_per_s"], abs=0.002
        )
    ours = rows[0]
    assert ours["codes"]["OK"] > 0


def test_without_the_model_the_row_says_so() -> None:
    (row,) = run("--case", "yolov8n", "--only", "added")
    assert row["measured"] is False
    assert "SIGHTLINE_TEST_MODELS" in row["why"]


def test_batches_are_measured_on_whatever_runs_them(tmp_path: Path) -> None:
    image = to_jpeg(make_plate(3).image)
    model = REPOSITORY / "plates" / "1" / "model.onnx"
    cases = accelerator.repositories(tmp_path, model, image)
    figures = accelerator.measure(cases, (CPU,), QUICK)
    assert figures["provider"] == CPU
    assert isinstance(figures["batching_gain"], float)
    assert figures["batching_gain"] > 0


def test_a_provider_that_cannot_be_used_is_not_measured(tmp_path: Path) -> None:
    model = REPOSITORY / "plates" / "1" / "model.onnx"
    assert accelerator.unusable((CPU,), model) is None
    why = accelerator.unusable(("NoSuchExecutionProvider",), model)
    assert why is not None
    assert "NoSuchExecutionProvider" in why
    row = accelerator.row(tmp_path, None, model, QUICK)
    assert (row["measured"], row["part"]) == (False, "cuda")


def test_servers_that_do_other_work_are_not_compared() -> None:
    plate = next(plate for plate in map(make_plate, range(100)) if len(plate.class_ids) > 1)
    case = Case("plates", REPOSITORY, to_jpeg(plate.image))
    blank = dataclasses.replace(case, image=to_jpeg(plate.image * 0))
    with servers.bare_grpc(case) as server:
        asyncio.run(parts.check_answers(case, [server]))
        with pytest.raises(RuntimeError, match="bare_grpc answers classes"):
            asyncio.run(parts.check_answers(blank, [server]))
