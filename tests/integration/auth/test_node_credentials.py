"""A real node whose credential is refused, and then replaced."""

import logging
from pathlib import Path

import pytest

from edge.channel import Endpoint
from edge.cloud.client import InferenceClient
from servicekit.auth.key_file import KeyFile
from servicekit.errors import SightlineError
from sightline import LogOptions, PredictionLogger
from tests.integration.auth.conftest import MakeKey
from tests.integration.auth.services import (
    PATIENCE,
    RED,
    answered,
    ingest,
    serving,
    stored,
)
from tests.unit.edge.samples import eventually, prediction
from tests.unit.servicekit.auth.signers import SECRET, claims, shared

COUNT = 50
OPTIONS = LogOptions(batch_timeout_seconds=0.05)


def logger(address: str, folder: Path) -> PredictionLogger:
    return PredictionLogger(
        address,
        device_id="gate-1",
        spool_dir=folder / "spool",
        api_key_file=folder / "credential",
        options=OPTIONS,
    )


def test_a_refused_node_keeps_everything_until_its_key_is_put_right(
    tmp_path: Path, key: MakeKey, keys: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    right, wrong = key("gate-1"), key("gate-2")
    (tmp_path / "credential").write_text(right)
    with ingest(tmp_path, "--api-keys-file", str(tmp_path / "keys.db")) as service:
        with logger(service.address, tmp_path) as log:
            log(prediction(), wait="committed", timeout=PATIENCE)
            (tmp_path / "credential").write_text(wrong)  # another device's
            for number in range(COUNT):
                log(prediction(f"i{number}"))
            assert eventually(lambda: "DEVICE_NOT_ALLOWED" in (log.stats().last_error or ""))
            assert log.stats().backlog == COUNT
            assert "refuses this device's credential" in caplog.text
            (tmp_path / "credential").write_text(right + "\n")
            assert log.flush(2 * PATIENCE, until="committed")
            assert log.stats().last_error is None
            assert log.stats().dropped == {}
        refused = answered(service, "PredictionLog").get("PERMISSION_DENIED", 0)
        assert refused + answered(service, "GetWatermark").get("PERMISSION_DENIED", 0) <= 3
    assert stored(tmp_path) == {"gate-1": (COUNT + 1, COUNT + 1)}


def test_a_file_that_is_away_for_a_while_loses_nothing(tmp_path: Path, key: MakeKey) -> None:
    right = key("gate-1")
    (tmp_path / "credential").write_text(right)
    with (
        ingest(tmp_path, "--api-keys-file", str(tmp_path / "keys.db")) as service,
        logger(service.address, tmp_path) as log,
    ):
        (tmp_path / "credential").unlink()
        log(prediction())
        assert eventually(lambda: "API_KEY_FILE_UNREADABLE" in (log.stats().last_error or ""))
        (tmp_path / "credential").write_text(right)
        assert log.flush(2 * PATIENCE, until="committed")
    assert stored(tmp_path) == {"gate-1": (1, 1)}


def test_a_token_is_replaced_while_the_node_runs(tmp_path: Path, colours: Path) -> None:
    credential = tmp_path / "credential"
    good = shared(claims(aud=None, scope="infer"))
    credential.write_text(shared(claims(aud=None, scope="infer", exp=1)))
    flags = ["--model-repository", str(colours), "--jwt-secret", SECRET]
    with serving("inference_service", tmp_path, *flags) as service:
        endpoint = Endpoint(service.address, api_key_file=credential)
        with InferenceClient(endpoint, timeout=PATIENCE) as client:
            with pytest.raises(SightlineError) as caught:
                client.infer([RED])
            assert caught.value.reason == "TOKEN_EXPIRED"
            credential.write_text(good)
            assert client.infer([RED]).results
