"""Real nodes against services that limit them: everything arrives, and nobody is hammered."""

import time
from pathlib import Path

import pytest

from edge.cloud.client import InferenceClient
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.policy import Mode, Policy
from sightline import LogOptions, PredictionLogger
from tests.integration.auth.conftest import MakeKey
from tests.integration.auth.services import (
    PATIENCE,
    RED,
    Client,
    answered,
    ingest,
    refusal,
    serving,
    stored,
)
from tests.unit.edge.samples import prediction

MESSAGES = 12
IN_MESSAGE = 10
OPTIONS = LogOptions(batch_size=IN_MESSAGE, stream_size=80, batch_timeout_seconds=0.05)


@pytest.mark.parametrize(
    "limit",
    [
        ["--rate-limit-per-second", "5", "--rate-limit-burst", "1"],
        ["--rate-limit-per-second", "5", "--rate-limit-burst", "3"],
        ["--rate-limit-bytes-per-second", "6000"],  # about 3 messages
        ["--rate-limit-bytes-per-second", "1500"],  # less than a message
    ],
    ids=["calls", "burst", "bytes", "small"],
)
def test_a_node_over_its_limit_arrives_exactly_once(tmp_path: Path, limit: list[str]) -> None:
    with ingest(tmp_path, *limit) as service:
        began = time.monotonic()
        with PredictionLogger(
            service.address, device_id="gate-1", spool_dir=tmp_path / "spool", options=OPTIONS
        ) as log:
            for number in range(MESSAGES * IN_MESSAGE):
                log(prediction(f"i{number}"))
            assert log.flush(2 * PATIENCE, until="committed")
            assert log.stats().committed == MESSAGES * IN_MESSAGE
        spent = time.monotonic() - began
        attempts = answered(service, "PredictionLog")
        asked = answered(service, "GetWatermark")
    assert stored(tmp_path) == {"gate-1": (MESSAGES * IN_MESSAGE,) * 2}
    assert attempts["RESOURCE_EXHAUSTED"] >= 2  # it was limited
    # What finds the bucket empty is sent once more, when the service says, and then passes.
    assert sum(attempts.values()) <= 2 * MESSAGES + 2, attempts
    assert sum(asked.values()) <= 3, asked
    assert spent > 1.0


def test_the_refusal_says_which_quota_and_how_long_and_what_is_committed(
    tmp_path: Path, key: MakeKey
) -> None:
    one, two = key("one", devices="*"), key("two", devices="*")
    flags = ["--rate-limit-per-second", "0.01", "--rate-limit-burst", "2"]
    with ingest(tmp_path, *flags, "--api-keys-file", str(tmp_path / "keys.db")) as service:

        def log() -> None:
            Client(service, one).log("gate-1", messages=3)

        error = refusal(log)
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert error.quotas[0].subject == "caller:one"
        assert error.quotas[0].description == "0.01 messages per second, 2 at once"
        assert error.retry_after == pytest.approx(100, abs=5)
        assert error.metadata["committed_through"] == "2"
        assert refusal(Client(service, one).watermark, "gate-1").reason == "RATE_LIMITED"
        assert Client(service, two).log("gate-2", messages=2).accepted == 2
    assert stored(tmp_path) == {"gate-1": (2, 2), "gate-2": (2, 2)}


def test_a_request_over_the_limit_is_asked_again_when_the_service_says(
    tmp_path: Path, colours: Path
) -> None:
    flags = ["--rate-limit-per-second", "1", "--rate-limit-burst", "1"]
    repository = ["--model-repository", str(colours)]
    with (
        serving("inference_service", tmp_path, *repository, *flags) as service,
        InferenceClient(service.address) as client,
    ):
        coordinator = InferenceCoordinator(None, client, Policy(mode=Mode.CLOUD, timeout=PATIENCE))
        for _ in range(4):
            assert coordinator.ask(RED).detections
        coordinator.close()
        attempts = answered(service, "Infer")
    assert attempts["OK"] == 4
    assert attempts["RESOURCE_EXHAUSTED"] <= 4
