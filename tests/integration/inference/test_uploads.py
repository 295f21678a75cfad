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
from sightline.inference.v1 import inference_pb2

from tests.integration.inference.process import (
    failure,
    names,
    started,
)
from tests.integration.inference.upload_callers import (
    BLUE,
    GREEN,
    RED,
    Message,
    UploadCaller,
    by,
    callers,
    files,
    header,
    until,
    upload,
)
from tests.integration.inference.upload_callers import flags as flags
from tests.integration.inference.upload_callers import folder as folder
from tests.integration.inference.upload_callers import keys as keys
from tests.integration.inference.upload_callers import other as other
from tests.integration.inference.upload_callers import owner as owner
from tests.integration.inference.upload_callers import shared as shared
from tests.unit.inference_service.tiny_onnx import bomb, picture


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
