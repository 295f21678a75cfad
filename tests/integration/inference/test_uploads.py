"""Pictures that are uploaded once and asked about by reference, over a real socket."""

import hashlib
import queue
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.errors import SightlineError
from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    failure,
    names,
    started,
)
from tests.unit.inference_service.tiny_onnx import bomb, picture

RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255), kind="JPEG")
GREEN = picture((0, 255, 0), size=(300, 300), kind="BMP")  # 270 000 bytes
Message = inference_service_pb2.UploadImageRequest


class UploadCaller:
    """A client with an API key of its own."""

    def __init__(self, created: InferenceStub, key: str) -> None:
        self._stub = created.stub
        self._metadata = (("authorization", f"Bearer {key}"),)

    def send(
        self, messages: Iterator[Message], timeout: float = 30
    ) -> inference_service_pb2.UploadImageResponse:
        return self._stub.UploadImage(messages, timeout=timeout, metadata=self._metadata)

    def upload(self, data: bytes, chunk: int = 100_000) -> inference_pb2.ImageReference:
        return self.send(upload(data, chunk)).image

    def refusal(self, *messages: Message) -> SightlineError:
        return failure(lambda: self.send(iter(messages)))

    def infer(
        self, *images: bytes | inference_pb2.Image, key: str | None = None, **fields: Any
    ) -> inference_service_pb2.InferResponse:
        return self.infer_with_call(*images, key=key, **fields)[0]

    def infer_with_call(
        self, *images: bytes | inference_pb2.Image, key: str | None = None, **fields: Any
    ) -> tuple[inference_service_pb2.InferResponse, bool]:
        """Return the answer, and True if it is a replay."""
        metadata = (*self._metadata, *((("idempotency-key", key),) if key else ()))
        request = ask(*images, **fields)
        answer, call = self._stub.Infer.with_call(request, timeout=30, metadata=metadata)
        return answer, ("idempotent-replayed", "true") in (call.trailing_metadata() or ())


def header(data: bytes, size: int | None = None, sha256: bytes | None = None) -> Message:
    digest = hashlib.sha256(data).digest() if sha256 is None else sha256
    declared = len(data) if size is None else size
    created = inference_service_pb2.UploadHeader(sha256=digest, size_bytes=declared)
    return Message(header=created)


def upload(data: bytes, chunk: int = 100_000) -> Iterator[Message]:
    yield header(data)
    for at in range(0, len(data), chunk):
        yield Message(chunk=data[at : at + chunk])


def by(reference: inference_pb2.ImageReference, **fields: Any) -> inference_pb2.Image:
    return inference_pb2.Image(reference=reference.reference, **fields)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """API keys by the caller's name, and the file that holds them."""
    path = tmp_path_factory.mktemp("keys") / "keys.sqlite"
    created = {
        name: KeyFile(path).create(name, devices=["*"], scopes=[Scope.INFER])[0]
        for name in ("owner", "other")
    }
    return {**created, "file": str(path)}


@pytest.fixture(scope="module")
def flags(colours: Path, keys: dict[str, str]) -> list[str]:
    return [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--api-keys-file", keys["file"]),
        *("--max-images", "4", "--max-image-bytes", "300000", "--max-image-pixels", "1000000"),
        *("--max-message-bytes", "2000000", "--upload-disk-reserve-bytes", "0"),
    ]


@contextmanager
def callers(
    server: InferenceProcess, keys: dict[str, str]
) -> Iterator[tuple[UploadCaller, UploadCaller]]:
    with client(server) as created:
        yield UploadCaller(created, keys["owner"]), UploadCaller(created, keys["other"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "uploads"


@pytest.fixture(scope="module")
def shared(
    flags: list[str], keys: dict[str, str], folder: Path
) -> Iterator[tuple[UploadCaller, UploadCaller]]:
    more = [*("--upload-dir", str(folder)), *("--upload-quota-bytes", "100000000")]
    with started(folder.parent, *flags, *more) as server, callers(server, keys) as both:
        yield both


@pytest.fixture
def owner(shared: tuple[UploadCaller, UploadCaller]) -> UploadCaller:
    return shared[0]


@pytest.fixture
def other(shared: tuple[UploadCaller, UploadCaller]) -> UploadCaller:
    return shared[1]


def files(folder: Path) -> set[str]:
    """Return the names of the files that hold pictures or parts of them."""
    own = {"reference.key"}
    return {
        path.name
        for path in folder.iterdir()
        if path.name not in own and not path.name.startswith("uploads.sqlite")
    }


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_uploaded_image_is_answered_as_if_it_were_sent(
    owner: UploadCaller, folder: Path
) -> None:
    begun = time.time()
    stored = owner.upload(GREEN, chunk=1000)
    digest = hashlib.sha256(GREEN)
    assert stored.sha256 == digest.digest()
    assert stored.size_bytes == len(GREEN)
    assert begun + 3590 < stored.expires_at.ToMilliseconds() / 1000 < time.time() + 3610
    assert digest.hexdigest() in files(folder)
    inline, referred = owner.infer(BLUE, GREEN), owner.infer(BLUE, by(stored, image_id="g"))
    assert names(referred.results[1]) == names(inline.results[1]) == ["green"]
    assert referred.results[1].image_id == "g"
    assert referred.results[1].detections == inline.results[1].detections
    right = inference_pb2.Image(reference=stored.reference, sha256=stored.sha256)
    assert names(owner.infer(right).results[0]) == ["green"]


def test_the_same_content_is_stored_once(
    owner: UploadCaller, other: UploadCaller, folder: Path
) -> None:
    before = files(folder) | {hashlib.sha256(RED).hexdigest()}
    first, second, third = owner.upload(RED), owner.upload(RED), other.upload(RED)
    assert files(folder) == before
    for reference in (first, second):
        assert names(owner.infer(by(reference)).results[0]) == ["red"]
    assert names(other.infer(by(third)).results[0]) == ["red"]


def test_a_reference_works_for_its_owner_only(owner: UploadCaller, other: UploadCaller) -> None:
    stored = owner.upload(BLUE)
    forged = stored.reference[:-1] + ("A" if stored.reference[-1] != "A" else "B")
    refusals = [
        failure(lambda: caller.infer(inference_pb2.Image(reference=text)))  # noqa: B023
        for caller, text in ((other, stored.reference), (owner, forged), (owner, "what?"))
    ]
    for error in refusals:
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "REFERENCE_UNKNOWN")
        assert [violation.field for violation in error.violations] == ["images[0].reference"]
        assert not error.retryable
    assert len({str(error) for error in refusals}) == 1


def test_a_bad_reference_fails_alone(owner: UploadCaller) -> None:
    unknown = inference_pb2.Image(reference="unknown", image_id="u")
    first, second = owner.infer(BLUE, unknown).results
    assert names(first) == ["blue"]
    assert (second.image_id, second.error.code) == ("u", grpc.StatusCode.NOT_FOUND.value[0])
    assert second.error.reason == "REFERENCE_UNKNOWN"
    assert "images[1].reference" in second.error.message
    error = failure(lambda: owner.infer(b"no picture", unknown))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IMAGES_INVALID")
    assert [v.field for v in error.violations] == ["images[0].data", "images[1].reference"]


def test_a_retry_may_switch_to_the_reference(owner: UploadCaller) -> None:
    key = str(uuid.uuid4())
    first, replayed = owner.infer_with_call(GREEN, key=key)
    assert not replayed
    again, replayed = owner.infer_with_call(by(owner.upload(GREEN)), key=key)
    assert replayed
    assert again == first


def test_a_wrong_hash_beside_a_reference_is_refused(owner: UploadCaller) -> None:
    image = by(owner.upload(BLUE), sha256=bytes(32))
    error = failure(lambda: owner.infer(image))
    assert error.reason == "IMAGE_HASH_MISMATCH"
    assert [violation.field for violation in error.violations] == ["images[0].sha256"]


HEAD = header(RED)
ALL = Message(chunk=RED)
HTML = b"<html>" * 20


@pytest.mark.parametrize(
    ("messages", "reason", "field"),
    [
        ([], "UPLOAD_HEADER_MISSING", "header"),
        ([ALL], "UPLOAD_HEADER_MISSING", "header"),
        ([Message()], "UPLOAD_HEADER_MISSING", "header"),
        ([HEAD, HEAD], "UPLOAD_HEADER_REPEATED", "header"),
        ([HEAD, Message()], "UPLOAD_CHUNK_MISSING", "chunk"),
        ([HEAD, Message(chunk=b"")], "UPLOAD_CHUNK_EMPTY", "chunk"),
        ([HEAD, Message(chunk=bytes(2**20 + 1))], "UPLOAD_CHUNK_TOO_LARGE", "chunk"),
        ([HEAD, ALL, Message(chunk=b"x")], "UPLOAD_TOO_LONG", "chunk"),
        ([HEAD], "UPLOAD_INCOMPLETE", "header.size_bytes"),
        ([HEAD, Message(chunk=RED[:-1])], "UPLOAD_INCOMPLETE", "header.size_bytes"),
        ([header(RED, sha256=bytes(32)), ALL], "IMAGE_HASH_MISMATCH", "header.sha256"),
        ([header(RED, sha256=b"short"), ALL], "INVALID_FIELD", "header.sha256"),
        ([header(RED, sha256=b""), ALL], "INVALID_FIELD", "header.sha256"),
        ([header(RED, size=0)], "INVALID_FIELD", "header.size_bytes"),
        ([header(RED, size=-1)], "INVALID_FIELD", "header.size_bytes"),
        ([header(RED, size=300_001)], "IMAGE_TOO_LARGE", "header.size_bytes"),
        ([*upload(HTML)], "IMAGE_TYPE_UNSUPPORTED", "chunk"),
        ([*upload(bomb())], "IMAGE_DIMENSIONS_TOO_LARGE", "chunk"),
        ([*upload(RED[:30])], "IMAGE_CORRUPT", "chunk"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_upload_that_is_refused(
    owner: UploadCaller, folder: Path, messages: list[Message], reason: str, field: str
) -> None:
    before = files(folder)
    error = owner.refusal(*messages)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert [violation.field for violation in error.violations] == [field]
    assert files(folder) == before


def test_a_cancelled_upload_leaves_nothing(owner: UploadCaller, folder: Path) -> None:
    before = files(folder)
    with hanging(owner, folder) as call:
        call.cancel()
        until(lambda: files(folder) == before)
    assert not incoming(folder)


@contextmanager
def hanging(owner: UploadCaller, folder: Path) -> Iterator[Any]:
    """Yield an upload whose first half is on the disk, and whose second half does not come."""
    data = picture((1, 2, 3), size=(310, 310), kind="BMP")
    with closing_queue() as (messages, put):
        put(header(data))
        put(Message(chunk=data[:280_000]))
        stub = owner._stub
        call = stub.UploadImage.future(messages, timeout=30, metadata=owner._metadata)
        until(lambda: any(path.stat().st_size == 280_000 for path in folder.glob("*.part")))
        yield call


@contextmanager
def closing_queue() -> Iterator[tuple[Iterator[Message], Callable[[Message], None]]]:
    """Yield a queue of messages that ends with the block."""
    waiting: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    try:
        yield iter(waiting.get, None), waiting.put
    finally:
        waiting.put(None)


def incoming(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "uploads.sqlite")) as reader:
        count: int = reader.execute("SELECT count(*) FROM incoming").fetchone()[0]
        return count


def test_a_killed_server_leaves_nothing_half(
    tmp_path: Path, flags: list[str], keys: dict[str, str]
) -> None:
    folder = tmp_path / "uploads"
    more = ["--upload-dir", str(folder), "--max-image-bytes", "400000"]
    with started(tmp_path, *flags, *more) as server, callers(server, keys) as (owner, _):
        kept = owner.upload(RED)
        with hanging(owner, folder):
            assert incoming(folder) == 1
            server.stop(signal.SIGKILL)
    assert any(name.endswith(".part") for name in files(folder))
    with started(tmp_path, *flags, *more) as server, callers(server, keys) as (owner, other):
        assert files(folder) == {hashlib.sha256(RED).hexdigest()}
        assert not incoming(folder)
        assert names(owner.infer(by(kept)).results[0]) == ["red"]  # the key has stayed the same
        with pytest.raises(grpc.RpcError):
            other.infer(by(kept))


def test_two_servers_on_one_folder(tmp_path: Path, flags: list[str], keys: dict[str, str]) -> None:
    folder = tmp_path / "uploads"
    more = ["--upload-dir", str(folder), "--max-image-bytes", "400000"]
    more += ["--receive-timeout-seconds", "60"]  # the twin may take long to start
    (tmp_path / "b").mkdir()
    with started(tmp_path, *flags, *more) as server, callers(server, keys) as (first, _):
        stored = first.upload(RED)
        with hanging(first, folder) as call:
            # Its start clears up, but not what another process is still receiving.
            with started(tmp_path / "b", *flags, *more) as twin, callers(twin, keys) as (second, _):
                assert incoming(folder) == 1
                assert names(second.infer(by(stored)).results[0]) == ["red"]
            call.cancel()


def test_references_and_files_expire(
    tmp_path: Path, flags: list[str], keys: dict[str, str]
) -> None:
    folder = tmp_path / "uploads"
    more = ["--upload-dir", str(folder), "--upload-ttl-seconds", "2"]
    with started(tmp_path, *flags, *more) as server, callers(server, keys) as (owner, _):
        stored = owner.upload(RED)
        assert names(owner.infer(by(stored)).results[0]) == ["red"]
        until(lambda: time.time() > stored.expires_at.ToMilliseconds() / 1000)
        error = failure(lambda: owner.infer(by(stored)))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "REFERENCE_EXPIRED")
        until(lambda: not files(folder))  # the server does this by itself


def test_an_answer_that_is_kept_outlives_its_image(owner: UploadCaller, folder: Path) -> None:
    data = picture((9, 255, 77))
    stored = owner.upload(data)
    key = str(uuid.uuid4())
    first, replayed = owner.infer_with_call(by(stored), key=key)
    assert not replayed
    (folder / hashlib.sha256(data).hexdigest()).unlink()
    assert owner.infer_with_call(by(stored), key=key) == (first, True)
    error = failure(lambda: owner.infer(by(stored)))
    assert error.reason == "REFERENCE_GONE"
    assert [violation.field for violation in error.violations] == ["images[0].reference"]


def test_an_image_that_is_gone_or_damaged(owner: UploadCaller, folder: Path) -> None:
    data = picture((9, 9, 255))
    path = folder / hashlib.sha256(data).hexdigest()
    stored = owner.upload(data)
    for damage in (lambda: path.write_bytes(data[:-1] + b"x"), path.unlink):
        damage()
        error = failure(lambda: owner.infer(by(stored)))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "REFERENCE_GONE")
        owner.upload(data)
        assert names(owner.infer(by(stored)).results[0]) == ["blue"]


def test_quotas_are_each_caller_s_own(
    tmp_path: Path, flags: list[str], keys: dict[str, str]
) -> None:
    more = ["--upload-quota-count", "2", "--upload-ttl-seconds", "600"]
    with started(tmp_path, *flags, *more) as server, callers(server, keys) as (owner, other):
        owner.upload(RED)
        owner.upload(BLUE)
        error = owner.refusal(*upload(GREEN))
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.reason == "UPLOAD_QUOTA_EXCEEDED"
        assert error.quotas[0].subject == "caller:owner"
        assert error.quotas[0].description == "2 images uploaded"
        assert error.retry_after is not None
        assert 580 < error.retry_after <= 600
        owner.upload(RED)  # a retry of what is there
        other.upload(GREEN)


def test_the_store_is_full(tmp_path: Path, flags: list[str], keys: dict[str, str]) -> None:
    more = ["--upload-max-bytes", "300000", "--upload-quota-bytes", "300000"]
    with started(tmp_path, *flags, *more) as server, callers(server, keys) as (owner, other):
        owner.upload(GREEN)
        other.upload(RED)
        error = other.refusal(*upload(picture((1, 1, 255), size=(280, 280), kind="BMP")))
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.reason == "UPLOAD_STORE_FULL"
        assert "300000 bytes" in error.message


def test_the_free_disk_space_is_kept(
    tmp_path: Path, flags: list[str], keys: dict[str, str]
) -> None:
    more = ["--upload-disk-reserve-bytes", str(1 << 50)]
    with started(tmp_path, *flags, *more) as server, callers(server, keys) as (owner, _):
        error = owner.refusal(*upload(RED))
        assert (error.reason, error.retry_after) == ("UPLOAD_STORE_FULL", 60)


def test_a_secret_of_the_operator_s_outlives_the_folder(
    tmp_path: Path, flags: list[str], keys: dict[str, str]
) -> None:
    config = tmp_path / "sightline.toml"
    config.write_text(f'[inference]\nupload_secret = "{"s" * 40}"\n')
    more = ["--config", str(config)]
    with started(tmp_path, *flags, *more) as server, callers(server, keys) as (owner, _):
        stored = owner.upload(RED)
    with started(tmp_path, *flags, *more) as server, callers(server, keys) as (owner, _):
        error = failure(lambda: owner.infer(by(stored)))
        assert error.reason == "REFERENCE_GONE"  # the temporary folder is, the signature is good
        owner.upload(RED)
        assert names(owner.infer(by(stored)).results[0]) == ["red"]


def test_without_a_folder_nothing_is_left(
    tmp_path: Path, flags: list[str], keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with started(tmp_path, *flags) as server, callers(server, keys) as (owner, _):
        stored = owner.upload(RED)
        (folder,) = (tmp_path / "tmp").glob("sightline-uploads-*")
        assert stored.sha256.hex() in files(folder)
        assert server.stop() == 0
    assert not list((tmp_path / "tmp").glob("sightline-uploads-*"))


def test_a_folder_that_cannot_be_used(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "file").touch()
    server = InferenceProcess(tmp_path, *flags, "--upload-dir", str(tmp_path / "file"))
    try:
        assert server.process.wait(60) == 1
    finally:
        server.stop(signal.SIGKILL)
    assert "upload_dir: " in server.log.read_text().splitlines()[-1]


def test_only_the_owner_of_the_process_may_read_the_files(
    owner: UploadCaller, folder: Path
) -> None:
    owner.upload(RED)
    for path in (folder / "reference.key", folder / hashlib.sha256(RED).hexdigest()):
        assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "reference.key").stat().st_size == 32
