"""Runs of `sightline log`, for tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.ingest import FakeIngest
from tests.integration.cli.terminal import (
    REPOSITORY,
    environment,
)

MODEL = REPOSITORY / "plates/1/model.onnx"
PARTS = ("skipped", "dropped", "by_device", "by_cloud", "failed", "waiting")


@pytest.fixture
def ingest() -> Iterator[FakeIngest]:
    with FakeIngest() as made:
        yield made


def settings(ingest: FakeIngest, folder: Path, **more: object) -> dict[str, str]:
    return environment(
        ingest_target=ingest.target,
        device_id="gate-1",
        device_model=MODEL,
        mode="device",
        spool_dir=folder / "spool",
        **more,
    )


def adds_up(stats: dict[str, Any]) -> bool:
    """Return True if every frame has one fate, and every answer is logged."""
    frames = all(
        one["read"] == sum(one[part] for part in PARTS) for one in stats["sources"].values()
    )
    answered = stats["pictures"]["by_device"] + sum(stats["pictures"]["by_cloud"].values())
    return frames and answered == stats["logger"]["logged"]
