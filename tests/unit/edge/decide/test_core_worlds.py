"""The state machine in worlds with a clock of their own, where everybody takes a time."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from edge.decide.policy import Mode, Policy
from edge.records import Source
from servicekit.errors import SightlineError
from tests.unit.edge.decide.transcripts import (
    BROKEN,
    CLOUD_RESULT,
    DEADLINE,
    DENIED,
    DEVICE_RESULT,
    INTERNAL,
    INVALID,
    OPEN,
    STOP,
    UNAVAILABLE,
    UNSURE_RESULT,
)


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
