"""A node whose model runs in a process of its own: crashes and hangs are errors in the budget."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.cloud.client import InferenceClient
from edge.decide.policy import Mode, Policy
from edge.detect import ProcessDetector
from edge.errors import DeviceError
from edge.log.logger import PredictionLogger
from edge.node import EdgeNode
from edge.records import CloudReason, Source
from tests.fakes.inference import Reply, serving
from tests.fakes.ingest import FakeIngest
from tests.integration.edge_detect.unruly import Unruly

BUDGET = 4.0


@contextmanager
def node(folder: Path, mode: Mode, *, hang_seconds: float) -> Iterator[EdgeNode]:
    policy = Policy(mode=mode, timeout=BUDGET, cloud_reserve=1.0)
    with FakeIngest() as ingest, serving(Reply()) as inference:
        logger = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=folder / "spool")
        detector = ProcessDetector(Unruly, hang_seconds=hang_seconds)
        with EdgeNode(detector, InferenceClient(inference.target), logger, policy) as made:
            yield made


def answered_by_device_again(made: EdgeNode) -> bool:
    """Waits until the device's model is back."""
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        if made.process(b"good").source is Source.DEVICE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("trouble", [b"segfault", b"exit", b"hang"])
def test_the_cloud_answers_for_it_and_the_model_comes_back(tmp_path: Path, trouble: bytes) -> None:
    with node(tmp_path, Mode.AUTO, hang_seconds=0.5) as made:
        assert made.process(b"good").source is Source.DEVICE
        began = time.monotonic()
        answer = made.process(trouble)
        assert time.monotonic() - began < BUDGET
        assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_FAILED)
        reason = "DEVICE_HUNG" if trouble == b"hang" else "DEVICE_CRASHED"
        assert answer.attempts[0].error == reason
        assert answered_by_device_again(made)
        assert made.logger.flush(10, until="committed")
        stats = made.stats()
    assert stats.pictures.failed == {}
    assert stats.logger.committed == stats.pictures.answered


def test_a_hang_that_outlasts_the_devices_share_leaves_the_cloud_its_reserve(
    tmp_path: Path,
) -> None:
    with node(tmp_path, Mode.AUTO, hang_seconds=30.0) as made:
        answer = made.process(b"hang")
        assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_TIMEOUT)
        assert answer.device_milliseconds is not None
        assert answer.device_milliseconds <= (BUDGET - 1.0) * 1e3
        assert answer.total_milliseconds <= BUDGET * 1e3
        began = time.monotonic()
    assert time.monotonic() - began < 10  # closing ends the process that hangs


@pytest.mark.parametrize(
    ("trouble", "reason"), [(b"segfault", "DEVICE_CRASHED"), (b"hang", "DEVICE_HUNG")]
)
def test_alone_it_fails_with_the_reason_and_the_next_images_at_once(
    tmp_path: Path, trouble: bytes, reason: str
) -> None:
    with node(tmp_path, Mode.DEVICE, hang_seconds=0.5) as made:
        with pytest.raises(DeviceError) as caught:
            made.process(trouble)
        assert caught.value.reason == reason
        assert [attempt.error for attempt in caught.value.attempts] == [reason]
        began = time.monotonic()
        with pytest.raises(DeviceError, match="DEVICE_RESTARTING"):
            made.process(b"good")
        assert time.monotonic() - began < 1
        assert made.stats().pictures.failed == {reason: 1, "DEVICE_RESTARTING": 1}
