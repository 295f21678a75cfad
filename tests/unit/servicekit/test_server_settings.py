from pathlib import Path
from typing import ClassVar

import pytest

from servicekit.server_settings import ServerSettings
from servicekit.settings import SettingsError, load

SECRET = "x" * 32


class IngestSettings(ServerSettings):
    part: ClassVar[str] = "ingest"


def complaint(*flags: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(IngestSettings, flags, prog="ingest")
    return str(caught.value)


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "place",
    ["jwks.json", "/a/b", "https://idp.example/jwks", "http://127.0.0.1:80/j", "http://[::1]/j"],
)
def test_a_jwks_is_a_file_or_a_url_that_can_be_trusted(place: str) -> None:
    made = load(IngestSettings, ["--jwt-jwks", place, "--jwt-audience", "a"], prog="ingest")
    assert made.jwt_jwks == place


@pytest.mark.parametrize(
    "place",
    [
        "http://idp.example/j",
        "ftp://127.0.0.1/j",
        "file:///etc/j",
        "https://",
        "http://127.0.0.1@x/",
    ],
)
def test_a_url_that_anyone_could_answer_for_is_refused(place: str) -> None:
    assert "jwt_jwks: must be a path, an https:// URL" in complaint(
        "--jwt-jwks", place, "--jwt-audience", "a"
    )


def test_a_jwks_needs_an_audience() -> None:
    assert "jwt_audience: must be given with jwt_jwks" in complaint("--jwt-jwks", "jwks.json")


def test_a_short_secret_is_refused_and_not_shown() -> None:
    said = complaint("--jwt-secret", "hunter2")
    assert "jwt_secret: must be at least 32 bytes" in said
    assert "hunter2" not in said


def test_an_empty_secret_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_INGEST_JWT_SECRET", "")
    assert load(IngestSettings, [], prog="ingest").jwt_secret is None


@pytest.mark.parametrize(
    "flags",
    [
        ["--api-keys-file", "keys.db"],
        ["--jwt-secret", SECRET],
        ["--jwt-jwks", "jwks.json", "--jwt-audience", "a"],
    ],
)
def test_credentials_are_not_taken_in_plain_text_from_elsewhere(flags: list[str]) -> None:
    said = complaint(*flags, "--listen", "0.0.0.0:1")
    field = flags[0][2:].replace("-", "_")
    assert f"tls_cert_file: must be given with {field}" in said
    for address in ("127.0.0.1:1", "[::1]:1", "localhost:1", "unix:s.sock"):
        load(IngestSettings, [*flags, "--listen", address], prog="ingest")
    tls = ["--tls-cert-file", "c.pem", "--tls-key-file", "k.pem"]
    load(IngestSettings, [*flags, *tls, "--listen", "0.0.0.0:1"], prog="ingest")


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--rate-limit-per-second", "-1"], "rate_limit_per_second"),
        (["--rate-limit-per-second", "nan"], "rate_limit_per_second"),
        (["--rate-limit-bytes-per-second", "inf"], "rate_limit_bytes_per_second"),
        (["--rate-limit-burst", "0"], "rate_limit_burst"),
        (["--rate-limits", "Infer"], "rate_limits"),
        (["--rate-limits", "Infer=1/s,Infer=2/s"], "rate_limits"),
        (["--max-bytes-in-flight", "4194303"], "max_bytes_in_flight"),
        (["--receive-timeout-seconds", "0.5"], "receive_timeout_seconds"),
        (["--max-concurrent-streams", "0"], "max_concurrent_streams"),
        (["--max-streams-per-caller", "0"], "max_streams_per_caller"),
        (["--max-connection-age-seconds", "0.05"], "max_connection_age_seconds"),
        (["--max-connection-age-seconds", "-1"], "max_connection_age_seconds"),
        (["--connection-grace-seconds", "-1"], "connection_grace_seconds"),
        (["--jwt-leeway-seconds", "601"], "jwt_leeway_seconds"),
        (["--jwt-devices-claim", ""], "jwt_devices_claim"),
    ],
)
def test_out_of_bounds_is_refused(flags: list[str], field: str) -> None:
    assert field in complaint(*flags)


def test_limits_of_methods(tmp_path: Path) -> None:
    expected = ("Infer=20/s:40", "UploadImage=5/s")
    flags = ["--rate-limits", "Infer=20/s:40, UploadImage=5/s"]
    assert load(IngestSettings, flags, prog="ingest").rate_limits == expected
    config = tmp_path / "sightline.toml"
    config.write_text('[ingest]\nrate_limits = ["Infer=20/s:40", "UploadImage=5/s"]\n')
    assert load(IngestSettings, [], prog="ingest").rate_limits == expected


def test_room_for_requests() -> None:
    flags = ["--max-message-bytes", "2000"]
    assert load(IngestSettings, flags, prog="ingest").bytes_in_flight == 32 * 2000
    flags += ["--max-bytes-in-flight", "2000"]
    assert load(IngestSettings, flags, prog="ingest").bytes_in_flight == 2000
