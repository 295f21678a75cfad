"""Counts by source and reason, and percentiles over a bounded window."""

import dataclasses

import grpc
import pytest

from edge.decide.answer import Answer
from edge.errors import Attempt
from edge.records import CloudReason, Source
from edge.tally import Latency, Tally
from servicekit.errors import SightlineError

BY_DEVICE = Answer(
    detections=(),
    source=Source.DEVICE,
    cloud_reason=None,
    model_name="tiny",
    model_version="",
    image_width=1,
    image_height=1,
    device_milliseconds=5.0,
    cloud_milliseconds=None,
    total_milliseconds=5.0,
    attempts=(Attempt(Source.DEVICE, 0.0, 0.005),),
    idempotent_replayed=False,
)


def by_cloud(reason: CloudReason) -> Answer:
    return dataclasses.replace(BY_DEVICE, source=Source.CLOUD, cloud_reason=reason)


def taking(device: float | None, cloud: float | None, total: float) -> Answer:
    return dataclasses.replace(
        BY_DEVICE, device_milliseconds=device, cloud_milliseconds=cloud, total_milliseconds=total
    )


def test_answers_and_failures_are_counted_by_reason() -> None:
    tally = Tally()
    tally.answered(BY_DEVICE)
    tally.answered(by_cloud(CloudReason.DEVICE_FAILED))
    tally.answered(by_cloud(CloudReason.DEVICE_FAILED))
    tally.answered(by_cloud(CloudReason.REQUESTED))
    tally.failed(SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "draining"))
    tally.failed(RuntimeError("CUDA error 700"))
    counts = tally.counts()
    assert counts.by_device == 1
    assert counts.by_cloud == {CloudReason.DEVICE_FAILED: 2, CloudReason.REQUESTED: 1}
    assert counts.failed == {"DRAINING": 1, "RuntimeError": 1}
    assert counts.answered == 4
    assert counts.fallback_rate == 0.75


def test_a_device_answer_that_was_kept_is_the_devices() -> None:
    tally = Tally()
    tally.answered(dataclasses.replace(BY_DEVICE, cloud_reason=CloudReason.DEVICE_UNSURE))
    assert (tally.counts().by_device, tally.counts().fallback_rate) == (1, 0.0)


def test_without_answers_there_are_no_percentiles_and_no_fallbacks() -> None:
    tally = Tally()
    tally.failed(RuntimeError())
    counts = tally.counts()
    assert counts.total_milliseconds == counts.cloud_milliseconds == Latency(None, None, None)
    assert counts.fallback_rate == 0.0


@pytest.mark.parametrize(
    ("answers", "p50", "p95", "p99"), [(1, 1, 1, 1), (2, 1, 2, 2), (20, 10, 19, 20)]
)
def test_percentiles_are_nearest_ranks(answers: int, p50: float, p95: float, p99: float) -> None:
    tally = Tally()
    for milliseconds in range(answers, 0, -1):
        tally.answered(taking(milliseconds, None, milliseconds))
    assert tally.counts().total_milliseconds == Latency(p50, p95, p99)


def test_device_and_cloud_count_where_they_were_asked() -> None:
    tally = Tally()
    tally.answered(taking(10, None, 11))
    tally.answered(taking(None, 50, 51))
    tally.answered(taking(20, 60, 81))
    counts = tally.counts()
    assert counts.device_milliseconds == Latency(10, 20, 20)
    assert counts.cloud_milliseconds == Latency(50, 60, 60)
    assert counts.total_milliseconds == Latency(51, 81, 81)


def test_bytes_are_summed() -> None:
    tally = Tally()
    for sent, saved in ((100, 50), (30, 0)):
        tally.answered(dataclasses.replace(BY_DEVICE, cloud_bytes=sent, cloud_bytes_saved=saved))
    counts = tally.counts()
    assert (counts.cloud_bytes, counts.cloud_bytes_saved) == (130, 50)


def test_percentiles_forget_what_lies_behind_the_window() -> None:
    tally = Tally()
    for _ in range(5000):
        tally.answered(taking(900, 900, 900))
    for _ in range(1024):
        tally.answered(taking(3, 3, 3))
    assert tally.counts().total_milliseconds.p99 == 3
    assert tally.counts().by_device == 6024
