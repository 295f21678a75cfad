"""Servers that several tests share, each with a model of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.inference.process import InferenceProcess, InferenceStub, client, started
from tests.unit.inference_service.tiny_onnx import colour_model

SLOW_SECONDS = 0.3  # of one run


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with two versions of a quick model, and one of another."""
    folder = tmp_path_factory.mktemp("colours")
    for name in ("colours/1", "colours/2", "other/1"):
        colour_model(folder / name / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with a slow model, for a service that is `WAITING`."""
    folder = tmp_path_factory.mktemp("slow")
    colour_model(folder / "slow" / "1" / "model.onnx", wait_seconds=SLOW_SECONDS)
    return folder


@pytest.fixture(scope="session")
def quick_server(
    tmp_path_factory: pytest.TempPathFactory, colours: Path
) -> Iterator[InferenceProcess]:
    """Serve the quick model; small limits."""
    flags = [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--max-images", "4", "--max-image-bytes", "200000", "--max-image-pixels", "1000000"),
        *("--max-message-bytes", "1000000"),
    ]
    with started(tmp_path_factory.mktemp("quick"), *flags) as server:
        yield server


@pytest.fixture
def quick(quick_server: InferenceProcess) -> Iterator[InferenceStub]:
    with client(quick_server) as connected:
        yield connected
