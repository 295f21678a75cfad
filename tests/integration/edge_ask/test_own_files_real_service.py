"""A device's own files against the inference service as a real process, with small limits."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from edge.cloud.client import InferenceClient
from servicekit.errors import SightlineError
from tests.integration.inference.process import InferenceProcess, started
from tests.unit.inference_service.tiny_onnx import colour_model
from tests.unit.vision.pictures import encode

GREEN = PIL.Image.new("RGB", (64, 48), (0, 255, 0))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceProcess]:
    folder = tmp_path_factory.mktemp("models")
    colour_model(folder / "colours" / "1" / "model.onnx")
    flags = ["--model-repository", str(folder), "--default-model", "colours"]
    small = ["--max-image-bytes", "200000", "--max-message-bytes", "300000"]
    with started(tmp_path_factory.mktemp("service"), *flags, *small) as server:
        yield server


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_the_service_answers_for_files_that_it_does_not_decode(
    service: InferenceProcess, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "green"
    path.write_bytes(encode(GREEN, kind))
    with InferenceClient(service.address, timeout=30) as client:
        (result,) = client.infer([path]).results
    assert result.error is None
    assert (result.image_width, result.image_height) == (64, 48)
    assert result.detections


def test_a_jpeg_without_its_end_is_answered(service: InferenceProcess) -> None:
    data = encode(GREEN, "JPEG")
    with InferenceClient(service.address, timeout=30) as client:
        whole, cut = client.infer([data, data[:-2]]).results
    assert cut.error is None
    assert cut.detections == whole.detections


@pytest.mark.parametrize("upload_above", [0, None])
@pytest.mark.parametrize("side", [300, 600])
def test_what_is_too_large_for_the_service_is_refused_with_its_limit(
    service: InferenceProcess, side: int, upload_above: int | None
) -> None:
    data = encode(PIL.Image.fromarray(np.zeros((side, side, 3), np.uint8)), "BMP")
    with (
        InferenceClient(service.address, timeout=30, upload_above_bytes=upload_above) as client,
        pytest.raises(SightlineError) as caught,
    ):
        client.infer([data])
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert caught.value.category == "validation"
    assert re.search(r"[23]00000", caught.value.message)
