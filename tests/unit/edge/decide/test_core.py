"""The coordinator's state machine as transcripts of observations and actions, without a clock."""

import grpc
import pytest

from edge.decide.events import (
    Action,
    AskCloud,
    AskDevice,
    CloudAnswered,
    CloudFailed,
    CloudRefused,
    DeviceAnswered,
    DeviceFailed,
    DropCloud,
    DropDevice,
    Observation,
    WakeAt,
    Woke,
)
from edge.decide.policy import Mode
from edge.records import CloudReason, Source
from servicekit.errors import SightlineError
from tests.unit.edge.decide.transcripts import (
    BROKEN,
    CLOUD_RESULT,
    DEADLINE,
    DEVICE_RESULT,
    INVALID,
    OPEN,
    UNAVAILABLE,
    Transcript,
)


def test_the_device_answers() -> None:
    t = Transcript(started=100.0)
    t.begins(AskDevice(), WakeAt(106.75))
    answer = t.answers(100.25, DeviceAnswered(DEVICE_RESULT))
    assert answer.detections == DEVICE_RESULT.detections
    assert (answer.source, answer.cloud_reason) == (Source.DEVICE, None)
    assert (answer.model_name, answer.model_version) == ("plates", "a1")
    assert (answer.image_width, answer.image_height) == (64, 48)
    assert (answer.device_milliseconds, answer.cloud_milliseconds) == (250.0, None)
    assert answer.total_milliseconds == 250.0
    assert [str(attempt) for attempt in answer.attempts] == [
        "device at 0.000 s: answered after 0.250 s"
    ]
    assert not answer.idempotent_replayed


def test_the_device_fails_and_the_cloud_answers() -> None:
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(0.5, DeviceFailed(BROKEN), AskCloud(8.0), WakeAt(8.0))
    answer = t.answers(0.75, CloudAnswered(CLOUD_RESULT, replayed=True))
    assert answer.detections == CLOUD_RESULT.detections
    assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_FAILED)
    assert (answer.model_name, answer.model_version) == ("big", "7")
    assert (answer.device_milliseconds, answer.cloud_milliseconds) == (500.0, 250.0)
    assert answer.total_milliseconds == 750.0
    assert [attempt.error for attempt in answer.attempts] == ["RuntimeError", ""]
    assert answer.idempotent_replayed


def test_the_device_is_late_and_its_late_answer_is_dropped() -> None:
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(6.75, Woke(), DropDevice(), AskCloud(8.0), WakeAt(8.0))
    t.at(7.0, DeviceAnswered(DEVICE_RESULT))
    answer = t.answers(7.5, CloudAnswered(CLOUD_RESULT))
    assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_TIMEOUT)
    assert [attempt.error for attempt in answer.attempts] == ["DEVICE_TIMEOUT", ""]


def test_a_late_failure_of_the_device_is_dropped_too() -> None:
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(6.75, Woke(), DropDevice(), AskCloud(8.0), WakeAt(8.0))
    t.at(7.0, DeviceFailed(BROKEN))
    assert t.answers(7.5, CloudAnswered(CLOUD_RESULT)).source is Source.CLOUD


def test_a_reserve_that_is_just_whole_is_enough() -> None:
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(7.0, DeviceFailed(BROKEN), AskCloud(8.0), WakeAt(8.0))


@pytest.mark.parametrize(
    ("happened", "dropped", "code"),
    [(DeviceFailed(BROKEN), [], "RuntimeError"), (Woke(), [DropDevice()], "DEVICE_TIMEOUT")],
)
def test_with_less_than_the_reserve_left_the_original_error_is_raised(
    happened: Observation, dropped: list[Action], code: str
) -> None:
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    fail = t.fails(7.001, happened, *dropped)
    assert [(a.source, a.error) for a in fail.attempts] == [(Source.DEVICE, code)]
    assert fail.error is BROKEN or isinstance(fail.error, SightlineError)
    assert fail.cause is None


def test_mode_device_gives_the_device_the_whole_budget_and_never_asks_the_cloud() -> None:
    t = Transcript(Mode.DEVICE)
    t.begins(AskDevice(), WakeAt(8.0))
    fail = t.fails(8.0, Woke(), DropDevice())
    assert isinstance(fail.error, SightlineError)
    assert (fail.error.code, fail.error.reason) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEVICE_TIMEOUT",
    )
    assert "8.000 s" in fail.error.message


def test_mode_device_raises_the_devices_error() -> None:
    t = Transcript(Mode.DEVICE)
    t.begins(AskDevice(), WakeAt(8.0))
    assert t.fails(0.1, DeviceFailed(BROKEN)).error is BROKEN


def test_mode_cloud_asks_the_cloud_at_once() -> None:
    t = Transcript(Mode.CLOUD)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    answer = t.answers(0.25, CloudAnswered(CLOUD_RESULT))
    assert answer.cloud_reason is CloudReason.REQUESTED
    assert (answer.device_milliseconds, answer.cloud_milliseconds) == (None, 250.0)


def test_without_a_model_on_the_device_the_cloud_is_asked_at_once() -> None:
    t = Transcript(has_device=False)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    answer = t.answers(0.25, CloudAnswered(CLOUD_RESULT))
    assert answer.cloud_reason is CloudReason.NO_DEVICE_MODEL


def test_an_image_that_the_device_refuses_is_not_sent_to_the_cloud() -> None:
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    assert t.fails(0.1, DeviceFailed(INVALID)).error is INVALID


def test_retryable_errors_are_retried_after_growing_waits() -> None:
    t = Transcript(Mode.CLOUD, backoff=0.5)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    t.at(0.25, CloudFailed(UNAVAILABLE), WakeAt(0.75))
    t.at(0.75, Woke(), AskCloud(8.0), WakeAt(8.0))
    t.at(1.0, CloudFailed(UNAVAILABLE), WakeAt(2.0))
    t.at(2.0, Woke(), AskCloud(8.0), WakeAt(8.0))
    answer = t.answers(2.25, CloudAnswered(CLOUD_RESULT))
    assert answer.cloud_milliseconds == 2250.0
    assert [(a.began, a.seconds, a.error) for a in answer.attempts] == [
        (0.0, 0.25, "DRAINING"),
        (0.75, 0.25, "DRAINING"),
        (2.0, 0.25, ""),
    ]


def test_the_servers_retry_delay_is_added_to_the_jitter() -> None:
    busy = SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "queue full", retry_after=2.0
    )
    t = Transcript(Mode.CLOUD, backoff=0.5)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    t.at(0.25, CloudFailed(busy), WakeAt(2.75))


def test_a_wait_beyond_the_budget_is_not_begun() -> None:
    busy = SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "draining", retry_after=7.5)
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(0.25, DeviceFailed(BROKEN), AskCloud(8.0), WakeAt(8.0))
    fail = t.fails(0.5, CloudFailed(busy))
    assert fail.error is busy
    assert fail.cause is BROKEN
    assert [a.error for a in fail.attempts] == ["RuntimeError", "DRAINING"]


def test_a_call_that_a_server_cancelled_is_retried() -> None:
    cancelled = SightlineError(grpc.StatusCode.CANCELLED, "CANCELLED", "the server goes away")
    t = Transcript(Mode.CLOUD, backoff=0.5)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    t.at(0.25, CloudFailed(cancelled), WakeAt(0.75))
    t.at(0.75, Woke(), AskCloud(8.0), WakeAt(8.0))


def test_a_retry_that_wakes_after_the_budget_is_not_begun() -> None:
    t = Transcript(Mode.CLOUD, backoff=0.5)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    t.at(7.25, CloudFailed(UNAVAILABLE), WakeAt(7.75))
    assert t.fails(8.05, Woke()).error is UNAVAILABLE


@pytest.mark.parametrize(
    "error",
    [
        INVALID,
        DEADLINE,
        SightlineError(grpc.StatusCode.UNAUTHENTICATED, "NO_KEY", "no key"),
        SightlineError(grpc.StatusCode.PERMISSION_DENIED, "NOT_YOURS", "not yours"),
        SightlineError(grpc.StatusCode.FAILED_PRECONDITION, "IDEMPOTENCY_KEY_REUSED", "reused"),
    ],
)
def test_other_errors_are_not_retried(error: SightlineError) -> None:
    t = Transcript(Mode.CLOUD)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    assert t.fails(0.1, CloudFailed(error)).error is error


def test_a_cloud_that_says_nothing_is_dropped_when_the_budget_ends() -> None:
    t = Transcript(Mode.CLOUD)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    fail = t.fails(8.0, Woke(), DropCloud())
    assert isinstance(fail.error, SightlineError)
    assert fail.error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    t.at(8.1, CloudAnswered(CLOUD_RESULT))


def test_what_is_observed_after_the_end_is_ignored() -> None:
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    t.answers(0.25, DeviceAnswered(DEVICE_RESULT))
    for late in (
        Woke(),
        DeviceFailed(BROKEN),
        CloudFailed(UNAVAILABLE),
        DeviceAnswered(DEVICE_RESULT),
    ):
        t.at(9.0, late)


def test_a_server_that_asks_for_no_retry_gets_none() -> None:
    stop = SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "draining", do_not_retry=True)
    t = Transcript(Mode.CLOUD)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    assert t.fails(0.1, CloudFailed(stop)).error is stop


def test_without_tokens_nothing_is_retried() -> None:
    t = Transcript(Mode.CLOUD)
    t.begins(AskCloud(8.0), WakeAt(8.0))
    assert t.fails(0.1, CloudFailed(UNAVAILABLE, may_retry=False)).error is UNAVAILABLE


def test_a_cloud_that_is_left_alone_is_no_try() -> None:
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(0.5, DeviceFailed(BROKEN), AskCloud(8.0), WakeAt(8.0))
    fail = t.fails(0.5, CloudRefused(OPEN))
    assert (fail.error, fail.source, fail.cause) == (OPEN, Source.CLOUD, BROKEN)
    assert [attempt.source for attempt in fail.attempts] == [Source.DEVICE]
