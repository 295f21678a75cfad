import os
from pathlib import Path

import pytest

from inference_service.settings import InferenceSettings
from servicekit.settings import SettingsError, load


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("SIGHTLINE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def settings(*argv: str) -> InferenceSettings:
    return load(InferenceSettings, argv, prog="python -m inference_service")


def test_defaults_serve_a_laptop() -> None:
    loaded = settings()
    assert loaded.listen == "127.0.0.1:50052"
    assert loaded.providers == ("CPUExecutionProvider",)
    assert loaded.max_image_bytes == 10 * 1024 * 1024
    assert loaded.max_image_pixels == 50_000_000
    assert loaded.max_images == 16
    assert loaded.idempotency_ttl_seconds == 24 * 3600
    assert loaded.rate_limit_per_second == 0
    assert loaded.upload_ttl_seconds == 3600
    assert loaded.bytes_in_flight == 1 << 29
    assert loaded.workers >= 1


def test_versions_are_pinned() -> None:
    assert settings().pinned == {}
    loaded = settings("--default-versions", "plates=2, parts=2026-01-02=b")
    assert loaded.pinned == {"plates": "2", "parts": "2026-01-02=b"}


@pytest.mark.parametrize("pins", ["plates", "=1", "plates=", "a=1,a=2"])
def test_pins_that_are_none(pins: str) -> None:
    with pytest.raises(SettingsError, match="default_versions: must be model=version, each model"):
        settings("--default-versions", pins)


def test_providers_are_comma_separated_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    provider_list = "CUDAExecutionProvider, CPUExecutionProvider"
    expected = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert settings("--providers", provider_list).providers == expected
    monkeypatch.setenv("SIGHTLINE_INFERENCE_PROVIDERS", provider_list)
    assert settings().providers == expected


def test_providers_in_a_file_may_be_a_list(tmp_path: Path) -> None:
    text = '[inference]\nproviders = ["CUDAExecutionProvider", "CPUExecutionProvider"]\n'
    (tmp_path / "sightline.toml").write_text(text)
    assert len(settings().providers) == 2


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["--providers", ""], "providers"),
        (["--workers", "0"], "workers"),
        (["--intra-op-threads", "0"], "intra_op_threads"),
        (["--max-images", "0"], "max_images"),
        (["--max-image-bytes", "0"], "max_image_bytes"),
        (["--max-image-pixels", "0"], "max_image_pixels"),
        (["--idempotency-ttl-seconds", "0"], "idempotency_ttl_seconds"),
        (["--queue-size", "0"], "queue_size"),
        (["--queue-size", "15"], "queue_size"),
        (["--caller-weights", "gate-1"], "caller_weights"),
        (["--caller-weights", "gate-1=0"], "caller_weights"),
        (["--caller-weights", "gate-1=-1"], "caller_weights"),
        (["--caller-weights", "gate-1=nan"], "caller_weights"),
        (["--caller-weights", "gate-1=1001"], "caller_weights"),
        (["--caller-weights", "=2"], "caller_weights"),
        (["--caller-weights", "a=1,a=2"], "caller_weights"),
        (["--max-message-bytes", "10485760"], "max_message_bytes"),
        (["--max-bytes-in-flight", "16777215"], "max_bytes_in_flight"),
        (["--upload-ttl-seconds", "0"], "upload_ttl_seconds"),
        (["--upload-max-bytes", "10485759"], "upload_max_bytes"),
        (["--upload-quota-bytes", "10485759"], "upload_quota_bytes"),
        (["--upload-quota-count", "0"], "upload_quota_count"),
        (["--upload-disk-reserve-bytes", "-1"], "upload_disk_reserve_bytes"),
        (["--upload-secret", "short"], "upload_secret"),
    ],
)
def test_a_bad_value_is_refused_by_name(argv: list[str], field: str) -> None:
    with pytest.raises(SettingsError, match=f"^{field}: "):
        settings(*argv)


def test_weights_are_by_name_which_may_hold_any_character() -> None:
    loaded = settings("--caller-weights", "gate-1=2,a=b=0.5")
    assert loaded.weights == {"gate-1": 2.0, "a=b": 0.5}
    assert settings().weights == {}


def test_a_queue_that_holds_one_request_is_enough() -> None:
    assert settings("--queue-size", "16").queue_size == 16
