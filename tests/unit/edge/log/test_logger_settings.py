"""The arguments, options and settings of the logger."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from edge.records import MAX_SIZE
from edge.settings import EdgeSettings
from edge.spool.directories import default_spool_dir
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.log.loggers import ingest as ingest
from tests.unit.edge.log.loggers import logger
from tests.unit.edge.samples import prediction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_id": ""}, "device_id must be 1 to 256 bytes"),
        ({"device_id": "ü" * 129}, "device_id must be 1 to 256 bytes"),
        ({"on_full": "explode"}, "on_full must be block, drop_oldest or drop_newest"),
        ({"target": "ingest.example:1", "api_key": "k"}, "api_key must not be sent in plain text"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictionLogger(**{"device_id": "gate-1", "spool_dir": tmp_path, **arguments})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_predictions", 0),
        ("memory_bytes", MAX_SIZE - 1),
        ("spool_bytes", 1000),
        ("batch_size", 10_001),
        ("batch_bytes", 1023),
        ("batch_bytes", (4 << 20) + 1),
        ("batch_timeout_seconds", -1.0),
        ("stream_size", 0),
    ],
)
def test_bad_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .* to .* \(got {value!r}\)"):
        LogOptions(**{name: value})  # type: ignore[arg-type]


def test_a_compression_that_nobody_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compression must be none or gzip \(got 'brotli'\)"):
        LogOptions(compression="brotli")  # type: ignore[arg-type]


def test_messages_are_bounded_by_bytes(tmp_path: Path, ingest: FakeIngest) -> None:
    sizes = list[int]()
    ingest.on_message = lambda message: sizes.append(message.ByteSize())
    options = LogOptions(batch_bytes=2048, batch_size=1000, batch_timeout_seconds=0.05)
    with PredictionLogger(
        ingest.target, device_id="gate-1", spool_dir=tmp_path, options=options
    ) as log:
        for number in range(100):
            log(prediction(f"i{number}"))
        assert log.flush(20, until="committed")
    assert len(ingest.images()) == 100
    assert 1024 < max(sizes) <= 2048


@pytest.mark.parametrize("thing", [None, "image", {"image_id": "i"}, ["image"]])
def test_other_things_are_refused(tmp_path: Path, thing: Any) -> None:
    with logger(tmp_path) as log:
        with pytest.raises(TypeError, match=r"prediction must be a sightline\.Prediction"):
            log.log(thing)
        assert log.stats().logged == 0


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        logger(tmp_path / "file")


def test_a_folder_that_can_never_be_made() -> None:
    with pytest.raises(FileNotFoundError, match="the spool folder /proc/no/spool cannot be used"):
        logger(Path("/proc/no/spool"))


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_spool_dir("gate-1") == Path("/state/sightline/gate-1")
    assert default_spool_dir("hall 2/gate") == Path("/state/sightline/hall 2%2Fgate")
    assert default_spool_dir("..") == Path("/state/sightline/%2E%2E")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_spool_dir("g") == Path("/home/me/.local/state/sightline/g")


def test_from_settings(tmp_path: Path, ingest: FakeIngest) -> None:
    settings = EdgeSettings(  # type: ignore[call-arg]
        ingest_target=ingest.target,
        device_id="gate-7",
        spool_dir=tmp_path,
        api_key=SecretStr("sesame"),
        on_full="block",
        batch_size=5,
        batch_bytes=4096,
        batch_timeout_seconds=0.0,
        compression="gzip",
    )
    with PredictionLogger.from_settings(settings) as log:
        log.log(prediction(), wait="committed", timeout=20)
        assert log._config.options == LogOptions(
            batch_size=5, batch_bytes=4096, batch_timeout_seconds=0.0, compression="gzip"
        )
        assert log._config.on_full == "block"
    assert [device for device, _ in ingest.spools] == ["gate-7"]
    assert ingest.metadata[0]["authorization"] == "Bearer sesame"


def test_settings_and_options_have_the_same_defaults() -> None:
    settings = EdgeSettings()  # type: ignore[call-arg]
    assert settings.log_options() == LogOptions()


@pytest.mark.parametrize(
    ("name", "minimum", "maximum"),
    [
        ("memory_predictions", 1, 1_000_000),
        ("memory_bytes", MAX_SIZE, 1 << 34),
        ("spool_bytes", 1 << 20, 1 << 50),
        ("spool_age_seconds", 0, 1 << 40),
        ("disk_reserve_bytes", 0, 1 << 50),
        ("batch_size", 1, 10_000),
        ("batch_bytes", 1 << 10, 4 << 20),
        ("batch_timeout_seconds", 0, 60),
        ("stream_size", 1, 1_000_000),
    ],
)
def test_settings_and_options_have_the_same_bounds(name: str, minimum: int, maximum: int) -> None:
    for value in (minimum, maximum):
        options = LogOptions(**{name: value})  # type: ignore[arg-type]
        assert EdgeSettings.model_validate({name: value}).log_options() == options
    for value in (minimum - 1, maximum + 1):
        message = rf"^{name} must be {minimum} to {maximum} \(got {value}\)$"
        with pytest.raises(ValueError, match=message):
            LogOptions(**{name: value})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=name):
            EdgeSettings.model_validate({name: value})
