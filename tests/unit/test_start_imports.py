"""A program imports what it needs only: that is most of the time that it takes to start."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {"edge", "ingest_service", "inference_service", "vision"}
SERVERS = {"duckdb", "pyarrow", "ptars", "numpy", "PIL", "yaml", "structlog", "prometheus_client"}
LATE = {"onnxruntime", "cv2", "torch", "ultralytics", "cryptography", "jwt", "opentelemetry"}
SETTINGS = {"pydantic_settings"}
CALLS = {"grpc", "google"}
PROGRAMS = {
    "sightline --version": PARTS | SERVERS | LATE | SETTINGS | CALLS | {"rich"},
    "sightline serve --help": PARTS | SERVERS | LATE | SETTINGS | CALLS,
    "sightline keys list --help": PARTS - {"edge"} | SERVERS | LATE | SETTINGS,
    "sightline export --help": PARTS | SERVERS | LATE | SETTINGS,
    "sightline stats --help": PARTS - {"edge"} | SERVERS | LATE,
    "edge log --help": PARTS - {"edge"} | SERVERS | LATE,
    "ingest_service --version": PARTS - {"ingest_service"} | LATE | {"PIL", "yaml", "typer"},
    "inference_service --version": {"edge", "ingest_service", "duckdb", "pyarrow", "typer", *LATE},
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_starts_without_what_it_does_not_need(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *program.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert len(imported) > 20, "Python no longer prints what it imports in this form"
    assert imported & PROGRAMS[program] == set()
