"""Cascade, hedging and the circuit breaker of the coordinator, on real threads and sockets."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edge.cloud.call import InferCall
from edge.cloud.client import InferenceClient
from edge.decide.cloud_health import BreakerState
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.policy import Cascade, Mode
from edge.detect.base import DetectorResult
from edge.errors import (
    CascadeRuleError,
    ClosedError,
    CloudError,
    CoordinatorClosedError,
    DeviceError,
)
from edge.records import Box, CloudReason, Detection, Source
from servicekit.errors import SightlineError
from tests.fakes.inference import Hang, Refuse, Reply, serving
from tests.unit.edge.decide.coordinators import (
    NOBODY,
    PIT,
    UNAVAILABLE,
    UNHURRIED,
    Hanging,
    Scripted,
    new_coordinator,
    policy,
)
from tests.unit.edge.decide.coordinators import ask as ask
from tests.unit.edge.decide.coordinators import hanging as hanging

UNSURE = DetectorResult((Detection(0, "pit", 0.4, Box(0, 0, 4, 4)),), 64, 48, "tiny", "d1")


def test_an_unsure_device_asks_the_cloud(ask: Any) -> None:
    with (
        serving(Reply()) as fake,
        new_coordinator(Scripted(lambda: UNSURE), fake.target, policy(Mode.CASCADE)) as coordinator,
    ):
        answer = ask(coordinator, b"picture")
        stats = coordinator.stats()
    assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_UNSURE)
    assert (answer.cloud_bytes, answer.cloud_error) == (len(b"picture"), "")
    assert (stats.cascaded, stats.cascade_kept) == (1, 0)


def test_its_answer_is_kept_and_flagged_when_the_cloud_is_down(ask: Any) -> None:
    chosen = policy(Mode.CASCADE, timeout=1.0, reserve=0.2)
    with new_coordinator(Scripted(lambda: UNSURE), NOBODY, chosen) as coordinator:
        answer = ask(coordinator, b"picture")
        stats = coordinator.stats()
    assert (answer.source, answer.detections) == (Source.DEVICE, UNSURE.detections)
    assert answer.cloud_error
    assert answer.total_milliseconds < 1050
    assert (stats.cascaded, stats.cascade_kept) == (1, 1)


def test_a_callers_rule_says_when_the_cloud_is_asked(ask: Any) -> None:
    chosen = policy(Mode.CASCADE, cascade=Cascade(rule=lambda result: result.image_width == 64))
    with serving(Reply()) as fake, new_coordinator(Scripted(), fake.target, chosen) as coordinator:
        assert ask(coordinator, b"picture").cloud_reason is CloudReason.DEVICE_UNSURE


def test_a_rule_that_raises_is_an_error_of_its_own(ask: Any) -> None:
    wrong = KeyError("no such class")

    def rule(result: DetectorResult) -> bool:
        raise wrong

    chosen = policy(Mode.CASCADE, cascade=Cascade(rule=rule))
    with (
        new_coordinator(Scripted(), NOBODY, chosen) as coordinator,
        pytest.raises(CascadeRuleError, match="KeyError") as caught,
    ):
        ask(coordinator, b"picture")
    assert caught.value.__cause__ is wrong
    assert [attempt.error for attempt in caught.value.attempts] == [""]


def test_a_device_later_than_its_p95_is_overtaken_by_the_cloud(ask: Any) -> None:
    slow = threading.Event()
    detector = Scripted()
    with (
        serving(Reply()) as fake,
        new_coordinator(detector, fake.target, policy(Mode.HEDGED)) as coordinator,
    ):
        for _ in range(20):
            assert ask(coordinator, b"picture").source is Source.DEVICE
        assert coordinator.stats().device_p95_seconds is not None
        seen = len(fake.seen)
        detector.does = lambda: slow.wait(30) and PIT  # type: ignore[assignment,return-value]
        answer = ask(coordinator, b"picture")
        slow.set()
        stats = coordinator.stats()
    assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_SLOW)
    assert answer.total_milliseconds < 4000
    assert len(fake.seen) == seen + 1
    assert stats.hedges >= stats.hedges_won >= 1


def test_a_model_that_hangs_fails_the_next_images_at_once_until_it_returns(
    ask: Any, hanging: Hanging
) -> None:
    chosen = policy(Mode.DEVICE, timeout=1.0, reserve=0.0)
    coordinator = InferenceCoordinator(hanging, None, chosen)
    with coordinator:
        with pytest.raises(DeviceError, match="DEVICE_TIMEOUT"):
            ask(coordinator, b"first")
        while not coordinator.stats().device_hangs:  # the model began a moment after the request
            time.sleep(0.005)
        began = time.monotonic()
        with pytest.raises(DeviceError, match="DEVICE_HUNG"):
            ask(coordinator, b"second")
        assert time.monotonic() - began < chosen.timeout  # it did not wait
        hanging.released.set()
        while coordinator.stats().device_hangs:
            time.sleep(0.005)
        assert ask(coordinator, b"third").source is Source.DEVICE
    assert hanging.seen == [b"first", b"third"]


def test_the_breaker_opens_and_half_opens_and_closes(ask: Any) -> None:
    chosen = policy(Mode.CLOUD, breaker_failures=3, breaker_seconds=0.4, retry_tokens=1)
    with (
        serving(UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, Reply()) as fake,
        new_coordinator(None, fake.target, chosen) as coordinator,
    ):
        for _ in range(3):
            assert coordinator.breaker is BreakerState.CLOSED
            with pytest.raises(CloudError, match="DRAINING"):
                ask(coordinator, b"picture")
        assert coordinator.breaker is BreakerState.OPEN
        with pytest.raises(CloudError, match="CIRCUIT_OPEN") as caught:
            ask(coordinator, b"picture")
        assert caught.value.attempts == ()
        assert caught.value.retryable
        assert 0 < (caught.value.retry_after or 0) <= 0.4
        assert len(fake.seen) == 3
        while coordinator.breaker is BreakerState.OPEN:
            time.sleep(0.005)
        assert coordinator.stats().breaker is BreakerState.HALF_OPEN
        assert ask(coordinator, b"picture").source is Source.CLOUD
        assert coordinator.breaker is BreakerState.CLOSED
        assert coordinator.stats().breaker_opened == 1


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "INVALID_ARGUMENT", "UNAUTHENTICATED"])
def test_errors_of_the_request_do_not_open_it(code: str) -> None:
    refused = Refuse(SightlineError(grpc.StatusCode[code], "NO", "no"))
    chosen = policy(Mode.CLOUD, breaker_failures=1)
    with serving(refused) as fake, new_coordinator(None, fake.target, chosen) as coordinator:
        for _ in range(3):
            with pytest.raises(CloudError, match="NO"):
                coordinator.ask(b"picture")
        assert coordinator.breaker is BreakerState.CLOSED
        assert coordinator.stats().retry_tokens == 1000


def test_a_server_that_is_late_opens_it() -> None:
    chosen = policy(Mode.CLOUD, timeout=0.2, reserve=0.1, breaker_failures=1)
    with serving(Hang()) as fake, new_coordinator(None, fake.target, chosen) as coordinator:
        with pytest.raises(CloudError):
            coordinator.ask(b"picture")
        assert coordinator.breaker is BreakerState.OPEN


async def test_a_cancelled_probe_makes_room_for_another() -> None:
    chosen = policy(Mode.CLOUD, breaker_failures=1, breaker_seconds=0.05, retry_tokens=1)
    with (
        serving(UNAVAILABLE, Hang(), Reply()) as fake,
        new_coordinator(None, fake.target, chosen) as coordinator,
    ):
        with pytest.raises(CloudError):
            await coordinator.aask(b"picture")
        while coordinator.breaker == BreakerState.OPEN:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.005)
        fake.called.clear()
        probe = asyncio.create_task(coordinator.aask(b"picture"))
        await asyncio.to_thread(fake.called.wait, 5)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert (await coordinator.aask(b"picture")).source is Source.CLOUD
        assert coordinator.stats().breaker == BreakerState.CLOSED


def test_without_tokens_a_dead_server_is_not_hammered() -> None:
    with serving(UNAVAILABLE) as fake:
        chosen = policy(Mode.CLOUD, timeout=1.0, reserve=0.1, retry_tokens=10)
        with new_coordinator(None, fake.target, chosen) as coordinator:
            for _ in range(8):
                with pytest.raises(CloudError):
                    coordinator.ask(b"picture")
            stats = coordinator.stats()
    # Five failures use up half the tokens, of which four may be tried again; then one a request
    # until the breaker has seen five requests fail.
    assert len(fake.seen) <= 5 + 5
    assert stats.retries <= 5
    assert stats.breaker is BreakerState.OPEN


@pytest.mark.parametrize("mode", [Mode.CASCADE, Mode.HEDGED])
def test_an_open_breaker_leaves_the_device_its_word(mode: Mode) -> None:
    chosen = policy(mode, timeout=0.5, reserve=0.1, breaker_failures=1, breaker_seconds=60)
    with new_coordinator(Scripted(lambda: UNSURE), NOBODY, chosen) as coordinator:
        broken = coordinator._backends.gate.acquire()
        coordinator._backends.gate.release(
            broken, SightlineError(grpc.StatusCode.UNAVAILABLE, "X", "x")
        )
        answer = coordinator.ask(b"picture")
    assert answer.source is Source.DEVICE
    assert answer.cloud_error == ("CIRCUIT_OPEN" if mode is Mode.CASCADE else "")


def test_a_closed_coordinators_error_is_both_of_its_kinds() -> None:
    closed = new_coordinator(None, NOBODY, policy(Mode.CLOUD))
    closed.close()
    with pytest.raises(CoordinatorClosedError) as caught:
        closed.ask(b"picture")
    assert isinstance(caught.value, ClosedError)
    assert caught.value.reason == "NODE_CLOSED"


def test_an_image_is_not_encoded_for_a_cloud_that_is_left_alone(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = InferenceClient(NOBODY)
    prepared: list[int] = []
    prepare = client.prepare

    def counted(*args: Any, **options: Any) -> InferCall:
        prepared.append(1)
        return prepare(*args, **options)

    monkeypatch.setattr(client, "prepare", counted)
    chosen = policy(Mode.CLOUD, timeout=0.5, reserve=0.1, breaker_failures=1, breaker_seconds=60)
    with InferenceCoordinator(None, client, chosen) as coordinator:
        for reason in ("UNAVAILABLE", "CIRCUIT_OPEN", "CIRCUIT_OPEN"):
            with pytest.raises(CloudError, match=reason):
                ask(coordinator, b"picture")
    assert prepared == [1]


@pytest.fixture
def unanswering(tmp_path: Path) -> Iterator[Path]:
    """A file whose reading blocks, like one on an unreachable file server."""
    path = tmp_path / "picture.jpg"
    os.mkfifo(path)
    yield path
    with suppress(OSError):  # nobody reads any more
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_an_image_that_cannot_be_read_in_time_ends_with_the_budget(
    ask: Any, unanswering: Path
) -> None:
    chosen = policy(Mode.CLOUD, timeout=0.5, reserve=0.1)
    with serving(Reply()) as fake, new_coordinator(None, fake.target, chosen) as coordinator:
        began = time.monotonic()
        with pytest.raises(CloudError, match="DEADLINE_EXCEEDED"):
            ask(coordinator, unanswering)
        assert time.monotonic() - began < UNHURRIED
    assert fake.seen == []


def test_a_hedge_that_takes_its_time_does_not_hold_up_the_device(
    ask: Any, unanswering: Path
) -> None:
    detector = Scripted()
    with (
        serving(Reply()) as fake,
        new_coordinator(detector, fake.target, policy(Mode.HEDGED)) as coordinator,
    ):
        for _ in range(20):
            ask(coordinator, b"picture")

        def late() -> DetectorResult:
            time.sleep(0.3)
            return PIT

        detector.does = late
        answer = ask(coordinator, unanswering)
    assert (answer.source, answer.cloud_reason) == (Source.DEVICE, CloudReason.DEVICE_SLOW)
    assert 300 <= answer.total_milliseconds < 1500
    assert 0.3 <= answer.attempt.seconds < 1.5


def test_hedges_that_the_device_wins_cost_no_tokens_and_one_that_is_late_does(ask: Any) -> None:
    detector = Scripted()
    chosen = policy(Mode.HEDGED, timeout=0.6, reserve=0.1, retry_tokens=30)
    with serving(Hang()) as fake, new_coordinator(detector, fake.target, chosen) as coordinator:
        for _ in range(20):
            ask(coordinator, b"picture")

        def late() -> DetectorResult:
            time.sleep(0.1)
            return PIT

        detector.does = late
        assert {ask(coordinator, b"picture").cloud_reason for _ in range(3)} <= {
            CloudReason.DEVICE_SLOW,
            None,
        }
        assert coordinator.stats().hedges >= 1
        assert coordinator.stats().retry_tokens == 30
    chosen = policy(Mode.CLOUD, timeout=0.3, reserve=0.1, retry_tokens=30)
    with serving(Hang()) as fake, new_coordinator(None, fake.target, chosen) as coordinator:
        with pytest.raises(CloudError):
            ask(coordinator, b"picture")
        assert coordinator.stats().retry_tokens == 29


def test_a_hedge_that_is_refused_is_none(ask: Any) -> None:
    detector = Scripted()
    chosen = policy(Mode.HEDGED, timeout=2.0, reserve=0.1, breaker_failures=1, breaker_seconds=60)
    with new_coordinator(detector, NOBODY, chosen) as coordinator:
        for _ in range(20):
            ask(coordinator, b"picture")
        permit = coordinator._backends.gate.acquire()
        coordinator._backends.gate.release(
            permit, SightlineError(grpc.StatusCode.UNAVAILABLE, "X", "x")
        )

        def late() -> DetectorResult:
            time.sleep(0.2)
            return PIT

        detector.does = late
        before = coordinator.stats().hedges
        answer = ask(coordinator, b"picture")
        assert coordinator.stats().hedges == before
    assert (answer.source, answer.cloud_error) == (Source.DEVICE, "CIRCUIT_OPEN")


async def test_retries_of_a_cancelled_request_count_too() -> None:
    with (
        serving(UNAVAILABLE, UNAVAILABLE, Hang()) as fake,
        new_coordinator(None, fake.target) as coordinator,
    ):
        task = asyncio.create_task(coordinator.aask(b"picture"))
        while len(fake.seen) < 3:  # noqa: ASYNC110 - a list, not an event
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert coordinator.stats().retries == 2


def test_images_that_wait_when_it_closes_are_told_and_not_looked_at(hanging: Hanging) -> None:
    coordinator = InferenceCoordinator(hanging, None, policy(Mode.DEVICE, timeout=20.0))
    errors: list[DeviceError] = []

    def ask() -> None:
        try:
            coordinator.ask(b"second")
        except DeviceError as error:
            errors.append(error)

    first = threading.Thread(target=coordinator.ask, args=(b"first",))
    first.start()
    while not hanging.seen:
        time.sleep(0.005)
    second = threading.Thread(target=ask)
    second.start()
    worker = coordinator._backends.worker
    assert worker is not None
    while worker._jobs.empty():
        time.sleep(0.005)
    threading.Timer(0.2, hanging.released.set).start()
    coordinator.close()
    second.join(5)
    first.join(5)
    assert [error.reason for error in errors] == ["NODE_CLOSED"]
    assert hanging.seen == [b"first"]


def test_whatever_goes_wrong_with_an_image_is_an_error_and_not_the_clouds(ask: Any) -> None:
    class Odd(np.ndarray[Any, Any]):
        def __array_interface__(self) -> Any:  # type: ignore[override] # what encoders ask for
            raise MemoryError("no room")

    odd = np.zeros((48, 64, 3), np.uint8).view(Odd)
    chosen = policy(Mode.CLOUD, breaker_failures=1)
    with serving(Reply()) as fake, new_coordinator(None, fake.target, chosen) as coordinator:
        with pytest.raises(CloudError, match="QUESTION_UNSENDABLE") as caught:
            ask(coordinator, odd)
        assert not caught.value.retryable
        assert coordinator.breaker is BreakerState.CLOSED
    assert fake.seen == []


def test_an_image_that_is_ready_when_all_is_settled_is_not_sent(
    ask: Any, unanswering: Path
) -> None:
    detector = Scripted()
    with (
        serving(Reply()) as fake,
        new_coordinator(detector, fake.target, policy(Mode.HEDGED, timeout=20.0)) as coordinator,
    ):
        for _ in range(20):
            ask(coordinator, b"picture")
        before = len(fake.seen)

        def late() -> DetectorResult:
            time.sleep(0.3)
            return PIT

        detector.does = late
        assert ask(coordinator, unanswering).source is Source.DEVICE
        named = [t for t in threading.enumerate() if t.name == "sightline-request"]
        unanswering.write_bytes(b"unwanted")
        for preparing in named:
            preparing.join(5)
            assert not preparing.is_alive()
        detector.does = lambda: PIT
        with InferenceClient(fake.target) as other:
            other.infer([b"another"])
    assert named
    sent = [seen.request.images[0].data for seen in fake.seen[before:]]
    assert b"another" in sent
    assert b"unwanted" not in sent
