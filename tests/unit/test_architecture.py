"""Arrows point down only, and what decides touches no clock, socket, file or thread."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("edge", "ingest_service", "inference_service")
ABOVE = {
    "servicekit": {*PARTS, "sightline_cli", "models", "examples"},
    **{
        part: ({*PARTS} - {part}) | {"sightline_cli", "models", "examples", "tests", "bench"}
        for part in PARTS
    },
}
CORES = (
    "edge/cloud/shrink.py",
    "edge/decide/breaker.py",
    "edge/decide/core.py",
    "edge/decide/events.py",
    "edge/decide/policy.py",
    "edge/decide/retry_tokens.py",
    "edge/decide/tries.py",
    "edge/sources/sampling.py",
    "edge/ship/core.py",
    "edge/log/encode.py",
    "edge/decide/labels.py",
    "edge/spool/lineage.py",
    "ingest_service/receive/sequence.py",
    "ingest_service/receive/checks.py",
    "ingest_service/receive/decision.py",
    "ingest_service/receive/capture_window.py",
    "ingest_service/receive/conflicts.py",
    "ingest_service/receive/content.py",
    "ingest_service/store/duckdb/file_format.py",
    "ingest_service/store/duckdb/verdict.py",
    "ingest_service/receive/fair_waiting.py",
    "inference_service/open_inference/describe.py",
    "inference_service/open_inference/request.py",
    "inference_service/open_inference/statistics.py",
    "inference_service/open_inference/tensors.py",
    "inference_service/models/calibration.py",
    "inference_service/serving/admission.py",
    "inference_service/serving/estimates.py",
    "inference_service/idempotency/lease_watch.py",
    "inference_service/serving/fair_queue.py",
    "inference_service/serving/places.py",
    "inference_service/serving/schedule.py",
    "inference_service/serving/tickets.py",
    "servicekit/calls/fair_share.py",
    "servicekit/pace.py",
    "servicekit/telemetry/repeats.py",
    "vision/onnx_names.py",
)
ACTS = {"time", "socket", "sqlite3", "threading", "asyncio", "pathlib", "os", "subprocess"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", ABOVE)
def test_arrows_point_down(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / package).rglob("*.py")
        for module in imports(path)
        if module.split(".")[0] in ABOVE[package]
    }
    assert wrong == set()


@pytest.mark.parametrize("core", CORES)
def test_what_decides_does_not_act(core: str) -> None:
    assert {module.split(".")[0] for module in imports(ROOT / core)} & ACTS == set()
