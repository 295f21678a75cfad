"""The tests that send Ctrl-C pass where SIGINT is ignored, and services end there as well."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
SENDS_CTRL_C = "test_an_unreachable_camera_is_told_in_one_line_and_nothing_else_is"


@contextmanager
def ignoring(*numbers: signal.Signals) -> Iterator[None]:
    """Starts children as a shell's background job would: with signals ignored."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_test_that_sends_ctrl_c_passes_where_it_is_ignored() -> None:
    module = "tests/integration/cli/test_log_sources.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with ignoring(*IGNORED):
        ran = subprocess.Popen(
            [*command, f"{module}::{SENDS_CTRL_C}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        said, _ = ran.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(ran.pid, signal.SIGKILL)  # and what the test has started, where it hangs
        ran.communicate()
    assert ran.returncode == 0, said


def test_children_of_tests_ignore_no_signal_and_block_none() -> None:
    program = (
        "import subprocess, sys; from tests.signals import start_children_with_defaults as start;"
        "start(); sys.exit(subprocess.run(['grep', '^Sig[BI]', '/proc/self/status']).returncode)"
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with ignoring(*IGNORED):
            ran = subprocess.run(
                [sys.executable, "-c", program],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    masks = {line.split(":")[0]: int(line.split()[1], 16) for line in ran.stdout.splitlines()}
    changeable = sum(1 << number - 1 for number in signal.valid_signals())  # bit 0 is signal 1
    assert masks["SigIgn"] & changeable == masks["SigBlk"] & changeable == 0


@pytest.mark.parametrize("module", ["ingest_service", "inference_service", "console_service"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_was_started_with_signals_ignored_drains(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    flags = {
        "ingest_service": ["--database", str(tmp_path / "sightline.duckdb")],
        "inference_service": ["--model-repository", str(ROOT / "models/repository")],
        "console_service": [],
    }[module]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    with ignoring(*IGNORED):
        service = subprocess.Popen(
            [sys.executable, "-m", module, "--listen", "127.0.0.1:0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    with service:
        assert service.stdout is not None
        assert json.loads(service.stdout.readline())["event"] == "ready"
        service.send_signal(number)
        _, said = service.communicate(timeout=60)
    assert service.returncode == 0, said
    assert "drained" in said
