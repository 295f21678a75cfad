"""`python -m bench.isolation` runs, on real servers, and prints what the floods did."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.infer.figures import OK, Call
from bench.isolation import figures, frames
from bench.isolation.flood import FLOODS
from bench.isolation.frames import Http2Frame, Kind

ROOT = Path(__file__).parents[2]
ANSWERED = [Call(0.0, 0.1, OK), Call(0.0, 0.2, OK), Call(0.0, 0.3, OK)]


@pytest.mark.parametrize("service", FLOODS)
def test_a_flood_is_measured(service: str) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "bench.isolation", "--seconds", "1"),
            *("--service", service, "--flood", "headers_only"),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=ROOT,
        env=os.environ,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    row: dict[str, Any] = json.loads(line)
    assert (row["service"], row["flood"]) == (service, "headers_only")
    assert 0 <= row["in_time_ratio"] <= 1
    assert row["in_time_ratio_alone"] > 0
    assert row["p99_ms"] > 0
    assert row["peak_rss_mib"] >= row["idle_rss_mib"] > 20
    assert row["memory_ratio"] >= 0
    assert sum(row["codes"].values()) == row["calls"] == 20


def test_a_call_that_failed_is_late() -> None:
    calls = [*ANSWERED, Call(0.0, 0.01, "RESOURCE_EXHAUSTED")]
    assert figures.in_time_ratio(calls) == 0.75
    assert figures.in_time_ratio(ANSWERED) == 1
    assert figures.p99_ms(calls, 1.0) == 1000
    assert figures.p99_ms(ANSWERED, 1.0) == 300
    assert figures.codes(calls) == {OK: 3, "RESOURCE_EXHAUSTED": 1}


def test_memory_counts_beyond_the_idle_process() -> None:
    assert figures.memory_ratio(100, 228, 64) == 2
    assert figures.memory_ratio(100, 90, 64) == 0


def test_frames_are_read_as_they_are_written() -> None:
    written = [
        Http2Frame(Kind.HEADERS, frames.END_HEADERS, 1, frames.block("/a.B/C", timeout="5S")),
        Http2Frame(Kind.DATA, frames.END_STREAM, 1, frames.message_head(0)),
        Http2Frame(Kind.RST_STREAM, 0, 3, b"\0\0\0\x08"),
    ]
    encoded = b"".join(map(bytes, written))
    for cut in range(len(encoded)):
        first, rest = frames.parse(encoded[:cut])
        then, nothing = frames.parse(rest + encoded[cut:])
        assert (first + then, nothing) == (written, b"")


def test_a_block_depends_on_no_block_before_it() -> None:
    headers = frames.fields(frames.block("/a.B/C", [("authorization", "Bearer x")], "5S"))
    assert headers[":path"] == "/a.B/C"
    assert headers["grpc-timeout"] == "5S"
    assert headers["authorization"] == "Bearer x"
