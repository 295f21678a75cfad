"""Tests that the baseline HTTP service commits the predictions that it acknowledges."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import http_sqlite


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with http_sqlite.service(tmp_path) as address:
        yield address


def post(address: str, body: bytes) -> dict[str, int]:
    request = urllib.request.Request(
        f"http://{address}/log", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        counts: dict[str, int] = json.load(answer)
        return counts


def stored(address: str) -> dict[str, int]:
    with urllib.request.urlopen(f"http://{address}/stats", timeout=30) as answer:
        counts: dict[str, int] = json.load(answer)
        return counts


def test_every_prediction_that_the_rate_counts_is_stored(address: str) -> None:
    rate = asyncio.run(http_sqlite.post(address, 32, 0.5))
    counts = stored(address)
    assert len(counts) == http_sqlite.DEVICES
    # The last requests end after the half second.
    assert rate * 0.5 <= sum(counts.values()) <= rate * 10
    assert all(count % 32 == 0 for count in counts.values())


def test_a_batch_is_answered_when_it_is_stored(address: str) -> None:
    (body,) = http_sqlite.bodies(3, 7, 1)
    assert post(address, body) == {"accepted": 7}
    assert stored(address) == {"bench-3": 7}


@pytest.mark.parametrize(
    "broken", [{"confidence": 1.5}, {"bbox": [1, 2, 3]}, {"class_name": "x" * 257}]
)
def test_a_batch_that_breaks_a_rule_is_refused_whole(
    address: str, broken: dict[str, object]
) -> None:
    (body,) = http_sqlite.bodies(0, 2, 1)
    batch = json.loads(body)
    batch["predictions"][1]["detections"][0].update(broken)
    with pytest.raises(urllib.error.HTTPError, match="422"):
        post(address, json.dumps(batch).encode())
    assert stored(address) == {}
