"""Transcripts of the coordinator's state machine: observations and actions, without a clock."""

import grpc

from edge.decide.answer import Answer
from edge.decide.core import Coordination
from edge.decide.events import (
    Action,
    Fail,
    Finish,
    Observation,
)
from edge.decide.policy import Cascade, Mode, Policy
from edge.detect.base import DetectorResult
from edge.records import Box, Detection
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
