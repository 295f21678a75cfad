"""The state machine in the modes cascade and hedged, as transcripts."""

import pytest

from edge.decide.events import (
    AskCloud,
    AskDevice,
    CloudAnswered,
    CloudFailed,
    CloudRefused,
    DeviceAnswered,
    DeviceFailed,
    DropCloud,
    DropDevice,
    Finish,
    Observation,
    WakeAt,
    Woke,
)
from edge.decide.policy import Cascade, Mode, Policy
from edge.detect.base import DetectorResult
from edge.records import CloudReason, Detection, Source
from servicekit.errors import SightlineError
from tests.unit.edge.decide.transcripts import (
    BROKEN,
    CLOUD_RESULT,
    DEADLINE,
    DEVICE_RESULT,
    INVALID,
    OPEN,
    UNAVAILABLE,
    UNSURE_RESULT,
    Transcript,
)


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


def test_an_image_that_the_device_refuses_ends_its_hedge() -> None:
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
