"""Memory for the pixels of a request, over a real socket: pictures wait for room, or never get any.

`test_isolation.py` has what one caller's floods do to another.
"""

import io
import itertools
import time
from pathlib import Path

import grpc
import psutil
import pytest
from PIL import Image

from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    started,
)
from tests.unit.inference_service.tiny_onnx import colour_model, picture

MIB = 1024 * 1024


@pytest.fixture
def quick_model(tmp_path: Path) -> Path:
    colour_model(tmp_path / "models/colours/1/model.onnx")
    return tmp_path / "models"


def flat_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def test_the_pixels_of_a_request_are_not_held_together(tmp_path: Path, quick_model: Path) -> None:
    """Item 3: 16 pictures of 20 million pixels, each 140 MB while it is decoded."""
    data = flat_png(5_000, 4_000)
    bound = 150 * MIB
    flags = [
        *("--model-repository", str(quick_model), "--workers", "2"),
        *("--max-bytes-in-flight", str(bound)),
    ]
    with started(tmp_path, *flags) as server, client(server) as first:
        first.infer(picture())
        before = _memory(server)
        peak = _most_memory(server, first, [data] * 16)
    assert peak - before < 2 * bound


def _most_memory(server: InferenceProcess, first: InferenceStub, pictures: list[bytes]) -> int:
    call = first.stub.Infer.future(ask(*pictures), timeout=300)
    peak = 0
    while not call.done():
        peak = max(peak, _memory(server))
        time.sleep(0.005)
    assert len(call.result().results) == len(pictures)
    return peak


def _memory(server: InferenceProcess) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def test_an_image_that_never_has_room_is_refused_for_its_size(
    tmp_path: Path, quick_model: Path
) -> None:
    flags = [
        *("--model-repository", str(quick_model), "--workers", "1"),
        *("--max-message-bytes", str(2 * MIB), "--max-image-bytes", str(MIB)),
        *("--max-bytes-in-flight", str(2 * MIB)),
    ]
    with started(tmp_path, *flags) as server, client(server) as first:
        error = first.refusal(flat_png(1000, 1000))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.reason == "IMAGE_DIMENSIONS_TOO_LARGE"
        assert f"{2 * MIB // 3} in total" in error.message
        assert "max_bytes_in_flight" in server.log.read_text()
        for size in itertools.repeat((700, 700), 3):
            assert first.infer(flat_png(*size)).results
