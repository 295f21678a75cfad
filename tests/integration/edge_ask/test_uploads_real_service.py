"""Uploads, references and shrunk pictures against the inference service as a real process."""

import io
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import PIL.Image
import pytest

from edge.cloud.aio_client import AsyncInferenceClient
from edge.cloud.call import InferCall
from edge.cloud.client import InferenceClient
from edge.cloud.types import InferAnswer, ModelHint
from servicekit.errors import SightlineError
from tests.integration.inference.process import InferenceProcess, started
from tests.photographs import photograph
from tests.unit.edge.overlap import overlap
from tests.unit.inference_service.tiny_onnx import colour_model

YOLO = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
SHA256_HEX = 64


def bmp(*colour: int) -> bytes:
    """A picture of one colour, of some 750 kB: three chunks of an upload."""
    out = io.BytesIO()
    PIL.Image.new("RGB", (500, 500), colour).save(out, "BMP")
    return out.getvalue()


RED, GREEN, BLUE = bmp(255, 0, 0), bmp(0, 255, 0), bmp(0, 0, 255)
SMALL = np.full((48, 64, 3), (0, 0, 255), np.uint8)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    colour_model(folder / "colours" / "1" / "model.onnx")
    if YOLO.is_file():
        (folder / "yolov8n" / "1").mkdir(parents=True)
        (folder / "yolov8n" / "1" / "model.onnx").symlink_to(YOLO)
    return folder


def flags(repository: Path) -> list[str]:
    return ["--model-repository", str(repository), "--default-model", "colours"]


@pytest.fixture(scope="module")
def service(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InferenceProcess]:
    with started(tmp_path_factory.mktemp("service"), *flags(repository)) as server:
        yield server


def uploading(server: InferenceProcess) -> InferenceClient:
    return InferenceClient(server.address, upload_above_bytes=100_000, timeout=20)


def names(answer: InferAnswer) -> list[list[str]]:
    """The classes that were found in each picture."""
    return [[found.class_name for found in result.detections] for result in answer.results]


def test_uploaded_or_inline_it_is_the_same_request(service: InferenceProcess) -> None:
    key = str(uuid.uuid4())
    with uploading(service) as client, InferenceClient(service.address) as inline:
        first = client.infer([RED, SMALL], image_ids=["a", "b"], idempotency_key=key)
        again = inline.infer([RED, SMALL], image_ids=["a", "b"], idempotency_key=key)
    assert (first.idempotent_replayed, again.idempotent_replayed) == (False, True)
    assert names(first) == [["red"], ["blue"]]
    assert again.results == first.results
    assert first.bytes_sent == again.bytes_sent > len(RED)


async def test_asyncio_uploads_as_threads_do(service: InferenceProcess) -> None:
    async with AsyncInferenceClient(service.address, upload_above_bytes=100_000) as client:
        answer = await client.infer([GREEN])
    assert names(answer) == [["green"]]
    assert answer.bytes_sent == len(GREEN)


def test_one_request_sent_twice_at_once_is_answered_once(service: InferenceProcess) -> None:
    with uploading(service) as client:
        call = client.prepare([BLUE])
        first, second = (pending.result() for pending in [client.send(call), client.send(call)])
    assert first.results == second.results
    assert {first.idempotent_replayed, second.idempotent_replayed} == {True, False}


@pytest.mark.parametrize("kept", [False, True], ids=["answers are gone", "answers are kept"])
def test_a_service_that_was_replaced_gets_the_image_again(
    repository: Path, tmp_path: Path, kept: bool
) -> None:
    # The new one does not know the reference. If it knows the answer, it takes the question with
    # that reference for another one, until the picture itself is in it.
    more = ["--idempotency-database", str(tmp_path / "answers.sqlite")] if kept else []
    with started(tmp_path, *flags(repository), *more) as old:
        client = uploading(old)
        call = client.prepare([RED])
        first = client.send(call).result()
        old.stop(signal.SIGKILL)
    with client, started(tmp_path, *flags(repository), *more, "--listen", old.address):
        second = _sent_when_it_is_back(client, call)
    assert (first.bytes_sent, second.bytes_sent) == (len(RED), 2 * len(RED))
    assert second.results == first.results
    assert second.idempotent_replayed == kept


def test_one_image_that_the_service_has_lost_is_uploaded_again(
    repository: Path, tmp_path: Path
) -> None:
    store = tmp_path / "uploads"
    more = ["--upload-dir", str(store)]
    with started(tmp_path, *flags(repository), *more) as old:
        client = uploading(old)
        call = client.prepare([RED, GREEN])
        first = client.send(call).result()
        old.stop(signal.SIGKILL)
    (store / call.request.images[1].sha256.hex()).unlink()
    with client, started(tmp_path, *flags(repository), *more, "--listen", old.address):
        second = _sent_when_it_is_back(client, call)
        stored = [path for path in store.iterdir() if len(path.name) == SHA256_HEX]
    assert names(second) == names(first) == [["red"], ["green"]]
    assert second.bytes_sent == len(RED) + 2 * len(GREEN)
    assert len(stored) == 2


def _sent_when_it_is_back(client: InferenceClient, call: InferCall) -> InferAnswer:
    """The answer, asked for until the connection has been made anew."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return client.send(call).result()
        except SightlineError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_where_the_quota_is_used_up_images_go_with_their_requests(
    repository: Path, tmp_path: Path
) -> None:
    store = tmp_path / "uploads"
    more = ["--upload-dir", str(store), "--upload-quota-count", "1"]
    with started(tmp_path, *flags(repository), *more) as server, uploading(server) as client:
        answers = [client.infer([picture]) for picture in (RED, GREEN, BLUE)]
        stored = [path for path in store.iterdir() if len(path.name) == SHA256_HEX]
    assert [names(answer) for answer in answers] == [[["red"]], [["green"]], [["blue"]]]
    assert len(stored) == 1
    assert answers[0].bytes_sent == len(RED)
    assert answers[1].bytes_sent >= len(GREEN)  # some of the upload that was refused has left
    assert answers[2].bytes_sent == len(BLUE)  # it is not tried again


def test_an_upload_that_is_refused_names_the_image(repository: Path, tmp_path: Path) -> None:
    more = ["--max-image-bytes", "700000"]
    with (
        started(tmp_path, *flags(repository), *more) as server,
        uploading(server) as client,
        pytest.raises(SightlineError) as caught,
    ):
        client.infer([SMALL, RED])
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "IMAGE_TOO_LARGE",
    )
    assert [violation.field for violation in caught.value.violations] == ["images[1]"]
    assert "700000" in caught.value.message


@pytest.mark.skipif(not YOLO.is_file(), reason="SIGHTLINE_TEST_MODELS holds no yolov8n_int8.onnx")
@pytest.mark.parametrize("name", ["bus.jpg", "zidane.jpg"])
def test_shrinking_saves_bytes_and_changes_no_answer(service: InferenceProcess, name: str) -> None:
    photograph, size = twice_as_large(name)
    hint = ModelHint("yolov8n")
    with (
        InferenceClient(service.address, timeout=30) as plain,
        InferenceClient(service.address, timeout=30, downscale=True) as shrinking,
    ):
        whole = plain.infer([photograph], model=hint)
        first = small = shrinking.infer([photograph], model=hint)
        deadline = time.monotonic() + 20
        while small.bytes_saved == 0:
            assert time.monotonic() < deadline
            small = shrinking.infer([photograph], model=hint)
    assert first.results == whole.results  # nothing had been learnt yet
    assert small.bytes_sent < whole.bytes_sent / 4
    assert small.bytes_sent + small.bytes_saved == len(photograph)
    ours, theirs = small.results[0], whole.results[0]
    assert (ours.image_width, ours.image_height) == size
    sure = [one for one in theirs.detections if one.confidence >= 0.5]
    assert len(sure) >= 2
    for one in sure:
        match = max(ours.detections, key=lambda other: overlap(one.box, other.box))
        assert match.class_name == one.class_name
        assert overlap(one.box, match.box) >= 0.9
        assert match.confidence == pytest.approx(one.confidence, abs=0.05)


def twice_as_large(name: str) -> tuple[bytes, tuple[int, int]]:
    """One of ultralytics' photographs as a camera of today takes it, and its width and height."""
    out = io.BytesIO()
    with PIL.Image.open(photograph(name)) as opened:
        width, height = (2 * side for side in opened.size)
        opened.resize((width, height)).save(out, "JPEG", quality=95)
    return out.getvalue(), (width, height)
