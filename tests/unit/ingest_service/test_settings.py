from pathlib import Path

import pytest

from ingest_service.settings import IngestSettings
from servicekit import resources
from servicekit.settings import SettingsError, load


def settings(*argv: str) -> IngestSettings:
    return load(IngestSettings, argv, prog="test")


def test_the_defaults_suit_a_laptop() -> None:
    chosen = settings()
    assert chosen.listen == "127.0.0.1:50051"
    assert chosen.database == Path("sightline.duckdb")


@pytest.mark.parametrize(
    ("flag", "good", "bad"),
    [
        ("--group-wait-ms", "20", "20.1"),
        ("--group-wait-ms", "0", "-1"),
        ("--group-bytes", "1", "0"),
        ("--max-inflight-bytes", "1", "0"),
        ("--decoder", "protobuf", "upb"),
        ("--query-threads", "1", "0"),
        ("--query-queue", "0", "-1"),
        ("--retain-days", "0", "-1"),
        ("--export-every-minutes", "0.01", "0"),
        ("--export-dir", ".", __file__),
        ("--database", "here.duckdb", "."),
        ("--database", "here.duckdb", "/"),
        ("--database", "here.duckdb", ""),
    ],
)
def test_a_value_beyond_its_bound_is_refused_by_name(flag: str, good: str, bad: str) -> None:
    settings(flag, good)
    with pytest.raises(SettingsError, match=flag.removeprefix("--").replace("-", "_")):
        settings(flag, bad)


def test_the_environment_names_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_INGEST_DATABASE", "elsewhere.duckdb")
    assert settings().database == Path("elsewhere.duckdb")


@pytest.mark.parametrize(
    ("available", "expected"),
    [(None, 512 << 20), (64 << 30, 512 << 20), (2 << 30, 256 << 20), (1 << 20, 64 << 20)],
)
def test_the_memory_of_a_query_follows_that_of_the_service(
    available: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "memory", lambda: available)
    assert settings().sql_memory == expected
    assert settings("--sql-memory-bytes", str(100 << 20)).sql_memory == 100 << 20
