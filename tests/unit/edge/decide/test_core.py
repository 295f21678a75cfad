"""The coordinator's state machine as transcripts of observations and actions, without a clock."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.decide.answer import Answer
from edge.decide.core import Coordination
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
    Fail,
    Finish,
    Observation,
    WakeAt,
    Woke,
)
from edge.decide.policy import Cascade, Mode, Policy
from edge.detect.base import DetectorResult
from edge.records import Box, CloudReason, Detection, Source
from servicekit.errors import SightlineError, invalid

DEVICE_RESULT = DetectorResult(
    (Detection(1, "scratch", 0.9, Box(1, 2, 3, 4)),), 64, 48, "plates", "a1"
)
CLOUD_RESULT = DetectorResult((Detection(2, "pit", 0.8, Box(5, 6, 7, 8)),), 64, 48, "big", "7")
BROKEN = RuntimeError("CUDA error 700")
UNAVAILABLE = SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "draining")
UNSURE_RESULT = DetectorResult(
    (Detection(1, "scratch", 0.5, Box(1, 2, 3, 4)),), 64, 48, "plates", "a1"
)
DENIED = SightlineError(grpc.StatusCode.PERMISSION_DENIED, "NOT_YOURS", "not yours")
INTERNAL = SightlineError(grpc.StatusCode.INTERNAL, "RUN_FAILED", "the run failed")
STOP = SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "draining", do_not_retry=True)
OPEN = SightlineError(grpc.StatusCode.UNAVAILABLE, "CIRCUIT_OPEN", "the breaker is open")
INVALID = invalid("images[0].data", "must be a picture", reason="IMAGE_CORRUPT")
DEADLINE = SightlineError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "too late")


class Transcript:
    """A transcript of one request; the time is the first word of each line."""

    def __init__(
        self,
        mode: Mode = Mode.AUTO,
        *,
        has_device: bool = True,
        started: float = 0.0,
        backoff: float = 0.5,
        slow_after: float | None = None,
        cascade: Cascade | None = None,
    ) -> None:
        policy = Policy(
            mode=mode,
            timeout=8.0,
            cloud_reserve=1.0,
            backoff=lambda n: backoff * n,
            cascade=cascade or Cascade(),
        )
        self.core = Coordination(policy, has_device, started, slow_after)

    def begins(self, *expected: Action) -> None:
        assert self.core.begin() == list(expected)

    def at(self, now: float, happened: Observation, *expected: Action) -> None:
        assert self.core.observe(happened, now) == list(expected)

    def answers(self, now: float, happened: Observation) -> Answer:
        (finish,) = self.core.observe(happened, now)
        assert isinstance(finish, Finish)
        return finish.answer

    def fails(self, now: float, happened: Observation, *before: Action) -> Fail:
        *others, fail = self.core.observe(happened, now)
        assert others == list(before)
        assert isinstance(fail, Fail)
        return fail


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


def test_a_image_that_the_device_refuses_is_not_sent_to_the_cloud() -> None:
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


# Cascade.


def test_an_unsure_device_asks_the_cloud() -> None:
    t = Transcript(Mode.CASCADE)
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(0.5, DeviceAnswered(UNSURE_RESULT), AskCloud(8.0), WakeAt(8.0))
    answer = t.answers(0.75, CloudAnswered(CLOUD_RESULT, bytes_sent=1234, bytes_saved=56))
    assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_UNSURE)
    assert answer.detections == CLOUD_RESULT.detections
    assert (answer.device_milliseconds, answer.cloud_milliseconds) == (500.0, 250.0)
    assert answer.cloud_error == ""
    assert (answer.cloud_bytes, answer.cloud_bytes_saved) == (1234, 56)
    assert answer.attempt.seconds == 0.25
    assert [attempt.error for attempt in answer.attempts] == ["", ""]


def test_a_sure_device_does_not() -> None:
    t = Transcript(Mode.CASCADE)
    t.begins(AskDevice(), WakeAt(6.75))
    answer = t.answers(0.5, DeviceAnswered(DEVICE_RESULT))
    assert (answer.source, answer.cloud_reason) == (Source.DEVICE, None)


def test_other_modes_do_not_care_how_sure_the_device_is() -> None:
    for mode in (Mode.AUTO, Mode.DEVICE, Mode.HEDGED):
        t = Transcript(mode)
        t.core.begin()
        assert t.answers(0.5, DeviceAnswered(UNSURE_RESULT)).source is Source.DEVICE


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (CloudFailed(DEADLINE), "DEADLINE_EXCEEDED"),
        (CloudFailed(UNAVAILABLE, may_retry=False), "DRAINING"),
        (CloudFailed(INVALID), "IMAGE_CORRUPT"),
        (CloudRefused(OPEN), "CIRCUIT_OPEN"),
    ],
)
def test_if_the_cloud_fails_an_unsure_answer_is_kept_and_flagged(
    failure: Observation, reason: str
) -> None:
    t = Transcript(Mode.CASCADE)
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(0.5, DeviceAnswered(UNSURE_RESULT), AskCloud(8.0), WakeAt(8.0))
    answer = t.answers(0.75, failure)
    assert (answer.source, answer.cloud_reason) == (Source.DEVICE, CloudReason.DEVICE_UNSURE)
    assert answer.detections == UNSURE_RESULT.detections
    assert answer.cloud_error == reason
    assert answer.attempt == answer.attempts[0]


def test_if_the_cloud_says_nothing_an_unsure_answer_is_returned_when_the_budget_ends() -> None:
    t = Transcript(Mode.CASCADE)
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(0.5, DeviceAnswered(UNSURE_RESULT), AskCloud(8.0), WakeAt(8.0))
    drop, finish = t.core.observe(Woke(), 8.0)
    assert drop == DropCloud()
    assert isinstance(finish, Finish)
    assert (finish.answer.source, finish.answer.cloud_error) == (Source.DEVICE, "DEADLINE_EXCEEDED")


def test_unsure_too_late_for_the_cloud_the_answer_is_flagged() -> None:
    t = Transcript(Mode.CASCADE)
    t.begins(AskDevice(), WakeAt(6.75))
    answer = t.answers(7.001, DeviceAnswered(UNSURE_RESULT))
    assert (answer.source, answer.cloud_reason) == (Source.DEVICE, CloudReason.DEVICE_UNSURE)
    assert answer.cloud_error == "NO_TIME_LEFT"


def test_in_cascade_a_failing_device_falls_back_too() -> None:
    t = Transcript(Mode.CASCADE)
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(0.5, DeviceFailed(BROKEN), AskCloud(8.0), WakeAt(8.0))
    answer = t.answers(0.75, CloudAnswered(CLOUD_RESULT))
    assert answer.cloud_reason is CloudReason.DEVICE_FAILED


def test_a_rule_that_raises_fails_the_request_with_its_error() -> None:
    wrong = KeyError("no such class")

    def rule(result: DetectorResult) -> bool:
        raise wrong

    t = Transcript(Mode.CASCADE, cascade=Cascade(rule=rule))
    t.begins(AskDevice(), WakeAt(6.75))
    fail = t.fails(0.5, DeviceAnswered(DEVICE_RESULT))
    assert (fail.error, fail.source) == (wrong, None)
    assert [attempt.error for attempt in fail.attempts] == [""]


def result_with(*confidences: float) -> DetectorResult:
    return DetectorResult(
        tuple(Detection(0, "x", confidence) for confidence in confidences), 1, 1, "m"
    )


@pytest.mark.parametrize(
    ("cascade", "confidences", "unsure"),
    [
        (Cascade(0.25, 0.6), (), False),
        (Cascade(0.25, 0.6, empty=True), (), True),
        (Cascade(0.25, 0.6), (0.25,), True),
        (Cascade(0.25, 0.6), (0.6,), True),
        (Cascade(0.25, 0.6), (0.6001,), False),
        (Cascade(0.25, 0.6), (0.2499,), False),
        (Cascade(0.25, 0.6), (0.4, 0.9), False),  # the best is sure
        (Cascade(0.25, 0.6, any=True), (0.9, 0.4), True),
        (Cascade(0.25, 0.6, any=True), (0.9, 0.7), False),
        (Cascade(0.0, 0.0), (0.0,), True),
        (Cascade(0.25, 0.6, rule=lambda result: len(result.detections) > 2), (0.5,), False),
        (Cascade(0.25, 0.6, rule=lambda result: len(result.detections) > 2), (1, 1, 1), True),
    ],
)
def test_the_band_the_flags_and_the_rule(
    cascade: Cascade, confidences: tuple[float, ...], unsure: bool
) -> None:
    assert cascade.unsure(result_with(*confidences)) is unsure


@pytest.mark.parametrize(
    ("low", "high", "named"),
    [(-0.1, 0.5, "low"), (0.6, 0.5, "high"), (0.5, 1.1, "high"), (float("nan"), 0.5, "low")],
)
def test_a_band_out_of_bounds_is_refused(low: float, high: float, named: str) -> None:
    with pytest.raises(ValueError, match=f"cascade {named} must be in"):
        Cascade(low, high)


# Hedged.


def test_a_slow_device_gets_company_and_the_cloud_may_win() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    drop, finish = t.core.observe(CloudAnswered(CLOUD_RESULT), 0.5)
    assert drop == DropDevice()
    assert isinstance(finish, Finish)
    answer = finish.answer
    assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_SLOW)
    assert [attempt.error for attempt in answer.attempts] == ["", "CLOUD_WAS_FIRST"]
    assert t.core.cloud_verdict is True


def test_or_the_device_may() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    drop, finish = t.core.observe(DeviceAnswered(DEVICE_RESULT), 0.4)
    assert drop == DropCloud()
    assert isinstance(finish, Finish)
    answer = finish.answer
    assert (answer.source, answer.cloud_reason) == (Source.DEVICE, CloudReason.DEVICE_SLOW)
    assert answer.cloud_error == ""
    assert [attempt.error for attempt in answer.attempts] == ["", "DEVICE_WAS_FIRST"]
    assert t.core.cloud_verdict is None  # being slower is no failure


def test_a_device_in_time_has_no_company() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3)
    t.begins(AskDevice(), WakeAt(0.3))
    assert t.answers(0.2, DeviceAnswered(DEVICE_RESULT)).cloud_reason is None


def test_before_it_is_known_what_is_late_nothing_is() -> None:
    t = Transcript(Mode.HEDGED)
    t.begins(AskDevice(), WakeAt(6.75))


def test_a_hedge_that_fails_leaves_the_device_to_answer() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    t.at(0.4, CloudFailed(DEADLINE))
    answer = t.answers(5.0, DeviceAnswered(DEVICE_RESULT))
    assert (answer.source, answer.cloud_error) == (Source.DEVICE, "DEADLINE_EXCEEDED")
    assert t.core.cloud_verdict is DEADLINE


def test_a_hedge_that_is_refused_does_so_too() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    t.at(0.3, CloudRefused(OPEN))
    assert t.answers(5.0, DeviceAnswered(DEVICE_RESULT)).cloud_error == "CIRCUIT_OPEN"


def test_a_device_that_fails_beside_its_hedge_leaves_the_cloud_to_answer() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    t.at(0.4, DeviceFailed(BROKEN), WakeAt(8.0))
    answer = t.answers(5.0, CloudAnswered(CLOUD_RESULT))
    assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_SLOW)


def test_when_both_fail_the_last_error_is_raised_and_the_first_is_its_cause() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    t.at(0.4, CloudFailed(DEADLINE))
    fail = t.fails(0.5, DeviceFailed(BROKEN))
    assert (fail.error, fail.source, fail.cause) == (BROKEN, Source.DEVICE, DEADLINE)

    t = Transcript(Mode.HEDGED, slow_after=0.3)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    t.at(0.4, DeviceFailed(BROKEN), WakeAt(8.0))
    fail = t.fails(0.5, CloudFailed(DEADLINE))
    assert (fail.error, fail.source, fail.cause) == (DEADLINE, Source.CLOUD, BROKEN)


def test_a_hedge_is_retried_while_the_device_works_on() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3, backoff=0.5)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    t.at(0.5, CloudFailed(UNAVAILABLE), WakeAt(1.0))
    t.at(1.0, Woke(), AskCloud(8.0), WakeAt(6.75))
    t.at(6.75, Woke(), DropDevice(), WakeAt(8.0))
    assert t.answers(7.5, CloudAnswered(CLOUD_RESULT)).source is Source.CLOUD


def test_a_hedge_that_failed_once_and_was_then_slower_is_no_failure() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3, backoff=0.5)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    t.at(0.5, CloudFailed(UNAVAILABLE), WakeAt(1.0))
    t.at(1.0, Woke(), AskCloud(8.0), WakeAt(6.75))
    drop, finish = t.core.observe(DeviceAnswered(DEVICE_RESULT), 1.2)
    assert drop == DropCloud()
    assert isinstance(finish, Finish)
    assert finish.answer.cloud_error == ""
    assert t.core.cloud_verdict is None


def test_a_image_that_the_device_refuses_ends_its_hedge() -> None:
    t = Transcript(Mode.HEDGED, slow_after=0.3)
    t.begins(AskDevice(), WakeAt(0.3))
    t.at(0.3, Woke(), AskCloud(8.0), WakeAt(6.75))
    assert t.fails(0.4, DeviceFailed(INVALID), DropCloud()).error is INVALID


def test_a_hedge_needs_the_reserve_too() -> None:
    t = Transcript(Mode.HEDGED, slow_after=7.5)
    t.begins(AskDevice(), WakeAt(6.75))
    t.at(6.75, Woke(), DropDevice(), AskCloud(8.0), WakeAt(8.0))


# What a request says of the cloud.


def test_the_verdict_on_the_cloud() -> None:
    t = Transcript()
    t.begins(AskDevice(), WakeAt(6.75))
    assert t.core.cloud_verdict is None
    t.at(0.5, DeviceFailed(BROKEN), AskCloud(8.0), WakeAt(8.0))
    assert t.core.cloud_verdict is None  # dropped here, it would say nothing
    t.at(0.6, CloudFailed(UNAVAILABLE), WakeAt(1.1))
    assert t.core.cloud_verdict is UNAVAILABLE
    t.at(1.1, Woke(), AskCloud(8.0), WakeAt(8.0))
    assert t.core.cloud_verdict is None
    t.fails(8.0, Woke(), DropCloud())
    verdict = t.core.cloud_verdict
    assert isinstance(verdict, SightlineError)
    assert verdict.reason == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("mode", "timeout", "reserve", "named"),
    [
        (Mode.AUTO, 0.0, 0.0, "timeout"),
        (Mode.AUTO, float("inf"), 1.0, "timeout"),
        (Mode.AUTO, float("nan"), 1.0, "timeout"),
        (Mode.AUTO, 1.0, 1.0, "cloud_reserve"),
        (Mode.CLOUD, 1.0, 2.0, "cloud_reserve"),
        (Mode.AUTO, 1.0, -0.1, "cloud_reserve"),
        (Mode.AUTO, 1.0, float("nan"), "cloud_reserve"),
    ],
)
def test_a_policy_out_of_bounds_is_refused(
    mode: Mode, timeout: float, reserve: float, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        Policy(mode=mode, timeout=timeout, cloud_reserve=reserve, backoff=lambda n: 0.0)


# A world with a clock of its own: everybody takes the time they are given.


@dataclass(frozen=True)
class Takes:
    """The behaviour of the device or of one try at the cloud, observed after `seconds`."""

    seconds: float
    then: Observation


@dataclass
class World:
    """A simulation of one request on a clock that only events advance.

    Attributes:
        device: what the device does; None: it never answers.
        cloud: what the cloud does at each try, the last one for ever; None: it never answers.
        lateness: how much later than asked the timer fires.
    """

    policy: Policy
    device: Takes | None
    cloud: Sequence[Takes | None]
    has_device: bool = True
    lateness: float = 0.0
    slow_after: float | None = None
    log: list[tuple[float, Action]] = field(default_factory=list)
    observed: list[Observation] = field(default_factory=list)

    def run(self) -> tuple[float, Finish | Fail]:
        core = Coordination(self.policy, self.has_device, 0.0, self.slow_after)
        order = count()
        events: list[tuple[float, int, Observation]] = []
        actions, now, wake, tries = core.begin(), 0.0, 0.0, 0
        while True:
            for action in actions:
                self.log.append((now, action))
                match action:
                    case Finish() | Fail():
                        return now, action
                    case AskDevice() if self.device:
                        event = (now + self.device.seconds, next(order), self.device.then)
                        heapq.heappush(events, event)
                    case AskCloud():
                        takes = self.cloud[min(tries, len(self.cloud) - 1)]
                        tries += 1
                        if takes:
                            event = (now + takes.seconds, next(order), takes.then)
                            heapq.heappush(events, event)
                    case WakeAt(at):
                        wake = at + self.lateness
            if events and events[0][0] <= wake:
                now, _, happened = heapq.heappop(events)
            else:
                now, happened = wake, Woke()
            self.observed.append(happened)
            actions = core.observe(happened, now)

    def drops_what_it_asked(self) -> bool:
        """Return True if every dropped call was started before."""
        return all(
            len(self.times_of(drop)) <= len(self.times_of(ask))
            for drop, ask in ((DropDevice, AskDevice), (DropCloud, AskCloud))
        )

    def times_of(self, kind: type[Action]) -> list[float]:
        return [now for now, action in self.log if isinstance(action, kind)]


def test_every_mode_device_outcome_budget_and_cloud_outcome() -> None:
    """Check the table of modes and failures against the documented rules."""
    device: dict[str, Observation | None] = {
        "answers": DeviceAnswered(DEVICE_RESULT),
        "unsure": DeviceAnswered(UNSURE_RESULT),
        "refuses": DeviceFailed(INVALID),
        "fails": DeviceFailed(BROKEN),
        "late": None,
    }
    cloud: dict[str, list[Takes | None]] = {
        "answers": [Takes(0.2, CloudAnswered(CLOUD_RESULT))],
        "retried": [Takes(0.2, CloudFailed(UNAVAILABLE)), Takes(0.2, CloudAnswered(CLOUD_RESULT))],
        "down": [Takes(0.017, CloudFailed(UNAVAILABLE))],
        "invalid": [Takes(0.2, CloudFailed(INVALID))],
        "auth": [Takes(0.2, CloudFailed(DENIED))],
        "internal": [Takes(0.017, CloudFailed(INTERNAL))],
        "stop": [Takes(0.2, CloudFailed(STOP))],
        "open": [Takes(0.0, CloudRefused(OPEN))],
        "deadline": [None],
    }
    seen = 0
    for mode in Mode:
        for device_does, observation in device.items():
            for enough in (True, False):
                for cloud_does, tries in cloud.items():
                    takes = Takes(1.0 if enough else 7.05, observation) if observation else None
                    # A device that fails at 7.05 s is observed only because the timer is late.
                    world = World(_policy(mode), takes, tries, lateness=0.0 if enough else 0.35)
                    at, end = world.run()
                    assert _outcome(end) == _expected(mode, device_does, enough, cloud_does)
                    assert at <= 8.0 + world.lateness
                    seen += 1
    assert seen == 5 * 5 * 2 * 9


def _policy(mode: Mode) -> Policy:
    return Policy(mode=mode, timeout=8.0, cloud_reserve=1.0, backoff=lambda n: 0.1)


def _outcome(end: Finish | Fail) -> str:
    if isinstance(end, Finish):
        answer = end.answer
        return " ".join(filter(None, (answer.source, answer.cloud_reason, answer.cloud_error)))
    return end.error.reason if isinstance(end.error, SightlineError) else "original"


def _expected(mode: Mode, device: str, enough: bool, cloud: str) -> str:
    cloud_error = {
        "down": "DRAINING",
        "invalid": "IMAGE_CORRUPT",
        "auth": "NOT_YOURS",
        "internal": "RUN_FAILED",
        "stop": "DRAINING",
        "open": "CIRCUIT_OPEN",
        "deadline": "DEADLINE_EXCEEDED",
    }
    device_error = {"fails": "original", "late": "DEVICE_TIMEOUT", "refuses": "IMAGE_CORRUPT"}
    if mode is Mode.CLOUD:
        return cloud_error.get(cloud, "cloud requested")
    if device == "unsure" and mode is Mode.CASCADE:
        if not enough:
            return "device device_unsure NO_TIME_LEFT"
        kept = f"device device_unsure {cloud_error.get(cloud)}"
        return kept if cloud in cloud_error else "cloud device_unsure"
    if device in ("answers", "unsure"):
        return "device"
    if mode is Mode.DEVICE or not enough or device == "refuses":
        return device_error[device]
    reason = "device_failed" if device == "fails" else "device_timeout"
    return cloud_error.get(cloud, f"cloud {reason}")


seconds = st.floats(0.0, 12.0)
retryable = st.floats(0.0, 5.0).map(
    lambda after: SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry_after=after
    )
)
cloud_does = st.one_of(
    st.none(),
    st.builds(Takes, seconds, st.builds(CloudAnswered, st.just(CLOUD_RESULT))),
    st.builds(
        Takes,
        seconds,
        st.builds(
            CloudFailed,
            st.sampled_from([UNAVAILABLE, INVALID, DENIED, INTERNAL, STOP, DEADLINE]) | retryable,
            st.booleans(),
        ),
    ),
    st.just(Takes(0.0, CloudRefused(OPEN))),
)
device_does = st.one_of(
    st.none(),
    st.builds(
        Takes, seconds, st.builds(DeviceAnswered, st.sampled_from([DEVICE_RESULT, UNSURE_RESULT]))
    ),
    st.builds(Takes, seconds, st.builds(DeviceFailed, st.sampled_from([BROKEN, INVALID]))),
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    timeout = draw(st.floats(0.05, 10.0))
    policy = Policy(
        mode=draw(st.sampled_from(Mode)),
        timeout=timeout,
        cloud_reserve=timeout * draw(st.floats(0.0, 0.99)),
        # At least a millisecond: a retry in no time, answered in no time, would never end.
        backoff=lambda n: draw(st.floats(0.001, 3.0)),
    )
    cloud = draw(st.lists(cloud_does, min_size=1, max_size=4))
    return World(
        policy,
        draw(device_does),
        cloud,
        has_device=draw(st.booleans()),
        lateness=draw(st.sampled_from([0.0, 0.04])),
        slow_after=draw(st.none() | st.floats(0.0, 12.0)),
    )


@given(worlds())
def test_nothing_ends_later_than_the_budget_and_the_device_never_spends_the_reserve(
    world: World,
) -> None:
    holds_in(world)


@pytest.mark.soak
@settings(max_examples=50_000, deadline=None)
@given(worlds())
def test_nor_in_many_more_worlds(world: World) -> None:
    holds_in(world)


def holds_in(world: World) -> None:
    at, _ = world.run()
    policy = world.policy
    assert at <= policy.timeout + world.lateness  # of the timer, not the coordinator's
    assert world.drops_what_it_asked()
    ends = [isinstance(action, Finish | Fail) for _, action in world.log]
    assert sum(ends) == 1
    assert ends[-1]
    if world.times_of(DropDevice):
        dropped = world.times_of(DropDevice)[0]
        hedged = any(time < dropped for time in world.times_of(AskCloud))
        left = policy.timeout - dropped
        if policy.mode is not Mode.DEVICE and not hedged:
            assert left >= policy.cloud_reserve - world.lateness
    if world.times_of(AskCloud):
        assert policy.timeout - world.times_of(AskCloud)[0] >= policy.cloud_reserve
        assert world.times_of(AskCloud)[-1] < policy.timeout
    if policy.mode is Mode.DEVICE and world.has_device:
        assert not world.times_of(AskCloud)
    if policy.mode is Mode.CLOUD or not world.has_device:
        assert not world.times_of(AskDevice)


@given(worlds())
def test_the_attempts_tell_the_whole_story(world: World) -> None:
    _, end = world.run()
    attempts = end.answer.attempts if isinstance(end, Finish) else end.attempts
    refused = sum(isinstance(observation, CloudRefused) for observation in world.observed)
    assert len(attempts) == len(world.times_of(AskDevice)) + len(world.times_of(AskCloud)) - refused
    assert all(attempt.seconds >= 0 for attempt in attempts)
    if isinstance(end, Finish):
        answer = end.answer
        assert answer.attempt.source is answer.source
        assert (answer.cloud_reason is None) or (
            Source.CLOUD in {attempt.source for attempt in attempts} or answer.cloud_error
        )
        assert answer.source is Source.DEVICE or not answer.cloud_error
    else:
        rule_or_kept = [attempt for attempt in attempts if not attempt.error]
        assert rule_or_kept == []
    for source in Source:
        mine = [attempt for attempt in attempts if attempt.source is source]
        for before, after in pairwise(mine):
            assert before.began + before.seconds <= after.began + 1e-9
