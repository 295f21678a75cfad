"""Counts by source and reason, and percentiles over a bounded window."""

import dataclasses

import grpc
import pytest

from edge.decide.answer import Answer
from edge.records import CloudReason, Source
from edge.tally import Tally
from servicekit.errors import SightlineError

BY_DEVICE = Answer((), Source.DEVICE, None, "tiny", "", 1, 1, 5.0, None, 5.0, (), False)


def by_cloud(reason: CloudReason) -> Answer:
    return dataclasses.replace(BY_DEVICE, source=Source.CLOUD, cloud_reason=reason)


def taking(milliseconds: float) -> Answer:
    return dataclasses.replace(BY_DEVICE, total_milliseconds=milliseconds)


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


def test_without_answers_there_are_no_percentiles() -> None:
    tally = Tally()
    tally.failed(RuntimeError())
    assert (tally.counts().p50_milliseconds, tally.counts().p95_milliseconds) == (None, None)


@pytest.mark.parametrize(("answers", "p50", "p95"), [(1, 1, 1), (2, 1, 2), (20, 10, 19)])
def test_percentiles_are_nearest_ranks(answers: int, p50: float, p95: float) -> None:
    tally = Tally()
    for milliseconds in range(answers, 0, -1):
        tally.answered(taking(milliseconds))
    assert (tally.counts().p50_milliseconds, tally.counts().p95_milliseconds) == (p50, p95)


def test_percentiles_forget_what_lies_behind_the_window() -> None:
    tally = Tally()
    for _ in range(5000):
        tally.answered(taking(900))
    for _ in range(1024):
        tally.answered(taking(3))
    assert tally.counts().p95_milliseconds == 3
    assert tally.counts().by_device == 6024
