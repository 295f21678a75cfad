from pathlib import Path
from typing import ClassVar

import pytest

from servicekit.server_settings import ServerSettings
from servicekit.settings import SettingsError, load


class IngestSettings(ServerSettings):
    part: ClassVar[str] = "ingest"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_calls_are_logged_and_not_traced_unless_told_otherwise() -> None:
    made = load(IngestSettings, [], prog="ingest")
    assert (made.access_log, made.otlp_endpoint, made.otlp_sample_ratio) == (True, "", 1.0)
    assert not load(IngestSettings, ["--no-access-log"], prog="ingest").access_log


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4317", "https://otel.example:443/"])
def test_a_collector_is_a_host_and_a_port(endpoint: str) -> None:
    assert load(IngestSettings, ["--otlp-endpoint", endpoint], prog="ingest").otlp_endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        *("127.0.0.1:4317", "grpc://collector:4317", "http://collector", "http://:4317"),
        *("http://collector:4318/v1/traces", "http://me:secret@collector:4317"),
        *("http://collector:port", "http://collector:99999"),
    ],
)
def test_another_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="otlp_endpoint: must be http://host:port or"):
        load(IngestSettings, ["--otlp-endpoint", endpoint], prog="ingest")


@pytest.mark.parametrize("ratio", ["-0.1", "1.1", "nan"])
def test_a_share_is_one(ratio: str) -> None:
    with pytest.raises(SettingsError, match="otlp_sample_ratio"):
        load(IngestSettings, ["--otlp-sample-ratio", ratio], prog="ingest")
