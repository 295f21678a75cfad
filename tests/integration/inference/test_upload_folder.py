"""The folder of uploads: what expires, quotas, and who may read it."""

import hashlib
import signal
import time
import uuid
from pathlib import Path

import grpc
import pytest

from tests.integration.inference.process import (
    InferenceProcess,
    failure,
    names,
    started,
)
from tests.integration.inference.upload_callers import (
    BLUE,
    GREEN,
    RED,
    UploadCaller,
    by,
    callers,
    files,
    until,
    upload,
)
from tests.integration.inference.upload_callers import flags as flags
from tests.integration.inference.upload_callers import folder as folder
from tests.integration.inference.upload_callers import keys as keys
from tests.integration.inference.upload_callers import other as other
from tests.integration.inference.upload_callers import owner as owner
from tests.integration.inference.upload_callers import shared as shared
from tests.unit.inference_service.tiny_onnx import picture


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
