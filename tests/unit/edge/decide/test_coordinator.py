"""The coordinator with real threads, a real event loop and a scripted gRPC server."""

import asyncio
import copy
import io
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import PIL.Image
import pytest
from sightline.inference.v1 import inference_pb2

from edge.cloud.client import InferenceClient
from edge.cloud.types import InferParameters, ModelHint
from edge.decide.answer import Answer
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.policy import Mode
from edge.detect.base import DetectorResult
from edge.errors import (
    ClosedError,
    CloudError,
    DeviceError,
)
from edge.records import Box, CloudReason, Detection, Source
from servicekit.errors import Category, SightlineError, invalid
from tests.fakes.inference import Hang, Refuse, Reply, serving
from tests.unit.edge.decide.coordinators import (
    NOBODY,
    PIT,
    UNAVAILABLE,
    UNHURRIED,
    Hanging,
    Scripted,
    failing,
    new_coordinator,
    policy,
)
from tests.unit.edge.decide.coordinators import ask as ask
from tests.unit.edge.decide.coordinators import hanging as hanging


def test_the_device_answers_and_the_cloud_hears_nothing(ask: Any) -> None:
    with serving(Reply()) as fake, new_coordinator(Scripted(), fake.target) as coordinator:
        answer = ask(coordinator, b"picture")
    assert (answer.source, answer.cloud_reason) == (Source.DEVICE, None)
    assert answer.detections == PIT.detections
    assert answer.device_milliseconds is not None
    assert answer.total_milliseconds >= answer.device_milliseconds
    assert fake.seen == []


def test_the_device_fails_and_the_cloud_answers(ask: Any) -> None:
    broken = failing(RuntimeError("CUDA error 700"))
    with (
        serving(Reply(replayed=True)) as fake,
        new_coordinator(
            broken,
            fake.target,
            model=ModelHint("plates"),
            parameters=InferParameters(confidence_threshold=0.5),
        ) as coordinator,
    ):
        answer = ask(coordinator, b"picture", image_id="frame-1")
    assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_FAILED)
    assert answer.detections == (Detection(1, "scratch", 0.75, Box(1, 2, 30.5, 40)),)
    assert (answer.model_name, answer.model_version) == ("plates", "3")
    assert (answer.image_width, answer.image_height) == (64, 48)
    assert answer.idempotent_replayed
    (seen,) = fake.seen
    assert seen.request.model.name == "plates"
    assert seen.request.parameters.confidence_threshold == 0.5
    assert seen.request.images[0].image_id == "frame-1"
    assert seen.request.images[0].data == b"picture"


def test_a_hanging_device_leaves_the_cloud_its_reserve(ask: Any, hanging: Hanging) -> None:
    with (
        serving(Reply()) as fake,
        new_coordinator(hanging, fake.target, policy(timeout=1.5, reserve=1.0)) as coordinator,
    ):
        answer = ask(coordinator, b"picture")
        assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_TIMEOUT)
        assert answer.device_milliseconds is not None
        assert 350 < answer.device_milliseconds <= 500
        assert answer.total_milliseconds < 1500
        hanging.released.set()
    remaining = fake.seen[0].time_remaining
    assert remaining is not None
    assert remaining < 1.3  # the budget's end, not a timeout of its own


@pytest.mark.slow
def test_a_device_that_hangs_for_ever_costs_the_next_images_time_but_not_their_answer(
    ask: Any, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(Reply()) as fake,
        new_coordinator(hanging, fake.target, policy(timeout=2.0, reserve=1.0)) as coordinator,
    ):
        for _ in range(3):
            answer = ask(coordinator, b"picture")
            assert answer.cloud_reason is CloudReason.DEVICE_TIMEOUT
        hanging.released.set()
    # Pictures that nobody waits for any more are not run when the device comes back.
    assert len(hanging.seen) == 1
    assert caplog.records == []


def test_unavailable_twice_then_an_answer_with_one_key(ask: Any) -> None:
    with (
        serving(UNAVAILABLE, UNAVAILABLE, Reply()) as fake,
        new_coordinator(None, fake.target) as coordinator,
    ):
        answer = ask(coordinator, b"picture")
    assert answer.cloud_reason is CloudReason.NO_DEVICE_MODEL
    assert [attempt.error for attempt in answer.attempts] == ["DRAINING", "DRAINING", ""]
    assert len(fake.seen) == 3
    assert len({seen.metadata["idempotency-key"] for seen in fake.seen}) == 1
    assert len({seen.request.SerializeToString() for seen in fake.seen}) == 1


def test_two_requests_have_two_keys() -> None:
    with serving(Reply()) as fake, new_coordinator(None, fake.target) as coordinator:
        coordinator.ask(b"picture")
        coordinator.ask(b"picture")
    assert len({seen.metadata["idempotency-key"] for seen in fake.seen}) == 2


def test_the_servers_retry_delay_is_waited_for(ask: Any) -> None:
    full = SightlineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry_after=0.3)
    with serving(Refuse(full), Reply()) as fake, new_coordinator(None, fake.target) as coordinator:
        answer = ask(coordinator, b"picture")
    first, second = answer.attempts
    assert second.began - (first.began + first.seconds) >= 0.3


def test_a_retry_delay_beyond_the_budget_fails_at_once(ask: Any) -> None:
    full = SightlineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry_after=60)
    with serving(Refuse(full)) as fake, new_coordinator(None, fake.target) as coordinator:
        began = time.monotonic()
        with pytest.raises(SightlineError, match="QUEUE_FULL"):
            ask(coordinator, b"picture")
    assert time.monotonic() - began < 3.0


def test_a_cloud_that_hangs_ends_with_the_budget(ask: Any) -> None:
    with (
        serving(Hang()) as fake,
        new_coordinator(None, fake.target, policy(timeout=0.5, reserve=0.1)) as coordinator,
    ):
        began = time.monotonic()
        with pytest.raises(SightlineError) as caught:
            ask(coordinator, b"picture")
        took = time.monotonic() - began
        assert fake.left.wait(5)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.45 < took < UNHURRIED


def test_an_outage_is_retried_until_the_budget_ends(ask: Any) -> None:
    with new_coordinator(None, NOBODY, policy(timeout=0.6, reserve=0.1)) as coordinator:
        began = time.monotonic()
        with pytest.raises(SightlineError) as caught:
            ask(coordinator, b"picture")
    assert time.monotonic() - began < UNHURRIED
    assert caught.value.code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
    assert len(caught.value.__notes__) > 2


def test_a_service_that_comes_back_answers_inside_the_budget() -> None:
    with serving(Reply()) as fake:
        target = fake.target
    coordinator = new_coordinator(None, target, policy(timeout=8.0))
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(coordinator.ask(b"picture")))
    with coordinator:
        thread.start()
        time.sleep(0.5)  # the outage, during which the connection is refused
        with serving(Reply(), at=target):
            thread.join(8)
    (answer,) = answers
    assert len(answer.attempts) > 1


def test_an_invalid_request_is_not_retried_and_keeps_its_details(ask: Any) -> None:
    bad = invalid("images[0].data", "must be a picture", reason="IMAGE_CORRUPT")
    broken = RuntimeError("CUDA error 700")
    with (
        serving(Refuse(bad)) as fake,
        new_coordinator(failing(broken), fake.target) as coordinator,
        pytest.raises(SightlineError) as caught,
    ):
        ask(coordinator, b"picture")
    assert caught.value.reason == "IMAGE_CORRUPT"
    assert caught.value.violations[0].field == "images[0].data"
    assert isinstance(caught.value, CloudError)
    assert isinstance(caught.value.__cause__, DeviceError)
    assert caught.value.__cause__.__cause__ is broken
    device, cloud = caught.value.__notes__
    assert device.startswith("device at 0.000 s: RuntimeError after")
    assert "IMAGE_CORRUPT" in cloud
    assert len(fake.seen) == 1


def test_a_single_images_error_is_raised() -> None:
    result = inference_pb2.ImageResult(
        error=inference_pb2.ImageError(code=3, reason="IMAGE_CORRUPT", message="cut off")
    )
    with (
        serving(Reply([result])) as fake,
        new_coordinator(None, fake.target) as coordinator,
        pytest.raises(SightlineError, match="IMAGE_CORRUPT"),
    ):
        coordinator.ask(b"picture")
    assert len(fake.seen) == 1


def test_a_closed_client_is_an_error_at_once(ask: Any) -> None:
    with serving(Reply()) as fake, InferenceClient(fake.target) as client:
        coordinator = InferenceCoordinator(None, client, policy())
        client.close()
        with pytest.raises(SightlineError, match="CLIENT_CLOSED"):
            ask(coordinator, b"picture")


def test_an_answer_without_a_result_is_an_error() -> None:
    with (
        serving(Reply([])) as fake,
        new_coordinator(None, fake.target, policy(timeout=0.3, reserve=0.1)) as coordinator,
        pytest.raises(SightlineError) as caught,
    ):
        coordinator.ask(b"picture")
    assert "ANSWER_INCOMPLETE" in caught.value.__notes__[0]


def test_the_classes_of_a_classification_come_as_detections_without_box() -> None:
    classified = inference_pb2.ImageResult(
        image_width=8,
        image_height=4,
        classes=[inference_pb2.ClassScore(class_id=2, class_name="ok", probability=0.5)],
    )
    with serving(Reply([classified])) as fake, new_coordinator(None, fake.target) as coordinator:
        assert coordinator.ask(b"picture").detections == (Detection(2, "ok", 0.5),)


def test_mode_device_raises_the_original_error_with_its_story(ask: Any) -> None:
    cause = OSError("driver")
    broken = RuntimeError("CUDA error 700")
    broken.__cause__ = cause
    coordinator = InferenceCoordinator(failing(broken), None, policy(Mode.DEVICE))
    with coordinator, pytest.raises(DeviceError, match="RuntimeError: CUDA error 700") as caught:
        ask(coordinator, b"picture")
    assert (caught.value.reason, caught.value.category) == ("DEVICE_FAILED", Category.SERVER)
    assert caught.value.__cause__ is broken
    assert broken.__cause__ is cause
    (attempt,) = caught.value.attempts
    assert (attempt.source, attempt.error) == (Source.DEVICE, "RuntimeError")
    assert caught.value.__notes__[0].startswith("device at 0.000 s: RuntimeError after")


def test_mode_device_is_bounded_too(ask: Any, hanging: Hanging) -> None:
    coordinator = InferenceCoordinator(hanging, None, policy(Mode.DEVICE, timeout=0.2, reserve=0.1))
    began = time.monotonic()
    with pytest.raises(SightlineError, match="DEVICE_TIMEOUT"):
        ask(coordinator, b"picture")
    assert time.monotonic() - began < UNHURRIED
    hanging.released.set()
    coordinator.close()


def test_mode_cloud_leaves_the_device_alone(ask: Any) -> None:
    detector = Scripted()
    with (
        serving(Reply()) as fake,
        new_coordinator(detector, fake.target, policy(Mode.CLOUD)) as coordinator,
    ):
        assert ask(coordinator, b"picture").cloud_reason is CloudReason.REQUESTED
    assert detector.seen == []


def test_an_image_that_the_device_refuses_is_not_sent(ask: Any) -> None:
    bad = failing(invalid("image", "must be a picture", reason="IMAGE_CORRUPT"))
    with (
        serving(Reply()) as fake,
        new_coordinator(bad, fake.target) as coordinator,
        pytest.raises(SightlineError, match="IMAGE_CORRUPT"),
    ):
        ask(coordinator, b"picture")
    assert fake.seen == []


def test_an_image_that_cannot_be_sent_is_refused(ask: Any, tmp_path: Path) -> None:
    with (
        serving(Reply()) as fake,
        new_coordinator(None, fake.target) as coordinator,
        pytest.raises(SightlineError, match="IMAGE_FILE_UNREADABLE"),
    ):
        ask(coordinator, tmp_path / "missing.jpg")
    assert fake.seen == []


@pytest.mark.parametrize("panic", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_not_even_an_exit_inside_the_model_ends_the_caller(ask: Any, panic: BaseException) -> None:
    with serving(Reply()) as fake, new_coordinator(failing(panic), fake.target) as coordinator:
        answers = [ask(coordinator, b"picture") for _ in range(2)]
    assert [a.cloud_reason for a in answers] == [CloudReason.DEVICE_FAILED] * 2


def test_nor_does_it_where_nobody_else_can_answer(ask: Any) -> None:
    coordinator = InferenceCoordinator(failing(SystemExit(3)), None, policy(Mode.DEVICE))
    with coordinator, pytest.raises(SightlineError, match="DEVICE_FAILED") as caught:
        ask(coordinator, b"picture")
    assert isinstance(caught.value.__cause__, SystemExit)


def test_pixels_are_encoded_once_for_all_tries(ask: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    with serving(UNAVAILABLE, Reply()) as fake, new_coordinator(None, fake.target) as coordinator:
        ask(coordinator, pixels)
    first, second = (seen.request.images[0] for seen in fake.seen)
    assert first == second
    with PIL.Image.open(io.BytesIO(first.data)) as sent:
        assert (sent.format, sent.size) == ("JPEG", (64, 48))


def test_files_are_sent_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"whatever is in it")
    with serving(Reply()) as fake, new_coordinator(None, fake.target) as coordinator:
        coordinator.ask(tmp_path / "a.jpg")
        coordinator.ask(str(tmp_path / "a.jpg"))
    assert {seen.request.images[0].data for seen in fake.seen} == {b"whatever is in it"}


async def test_a_cancelled_task_ends_what_is_under_way() -> None:
    with serving(Hang()) as fake, new_coordinator(None, fake.target) as coordinator:
        task = asyncio.create_task(coordinator.aask(b"picture"))
        await asyncio.to_thread(fake.called.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(fake.left.wait, 5)


async def test_a_cancelled_task_takes_its_image_back_from_the_device(hanging: Hanging) -> None:
    with new_coordinator(hanging, NOBODY) as coordinator:
        tasks = [asyncio.create_task(coordinator.aask(name)) for name in (b"first", b"second")]
        while not hanging.seen:  # noqa: ASYNC110 - a list, not an event
            await asyncio.sleep(0.005)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        hanging.released.set()
        await tasks[0]
    assert hanging.seen == [b"first"]


def test_a_late_device_does_no_harm_to_a_loop_that_is_gone(
    hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(Reply()) as fake,
        new_coordinator(hanging, fake.target, policy(timeout=1.4, reserve=1.0)) as coordinator,
    ):
        asyncio.run(coordinator.aask(b"picture"))
        hanging.released.set()
    assert caplog.records == []


async def test_threads_and_tasks_ask_one_coordinator_at_once() -> None:
    turn = iter(range(1000))

    def sometimes() -> DetectorResult:
        if next(turn) % 3 == 0:
            raise RuntimeError("CUDA error 700")
        return PIT

    with serving(Reply()) as fake, new_coordinator(Scripted(sometimes), fake.target) as coordinator:
        answers = await asyncio.gather(
            *(coordinator.aask(b"picture") for _ in range(30)),
            *(asyncio.to_thread(coordinator.ask, b"picture") for _ in range(30)),
        )
    by_cloud = [answer for answer in answers if answer.source is Source.CLOUD]
    assert (len(answers), len(by_cloud), len(fake.seen)) == (60, 20, 20)
    assert len({seen.metadata["idempotency-key"] for seen in fake.seen}) == 20


def test_a_closed_coordinator_refuses_at_once(ask: Any) -> None:
    for detector, mode in ((Scripted(), Mode.DEVICE), (None, Mode.CLOUD)):
        closed = new_coordinator(detector, NOBODY, policy(mode))
        closed.close()
        with pytest.raises(ClosedError):
            ask(closed, b"picture")


def test_modes_need_their_parts() -> None:
    with pytest.raises(ValueError, match="detector must be given in mode device"):
        InferenceCoordinator(None, None, policy(Mode.DEVICE))
    for mode in (Mode.AUTO, Mode.CLOUD):
        with pytest.raises(ValueError, match=f"client must be given in mode {mode}"):
            InferenceCoordinator(Scripted(), None, policy(mode))


def test_a_hanging_model_does_not_keep_the_process_from_ending() -> None:
    program = """
import threading
from edge.decide.policy import Mode, Policy
from edge.decide.coordinator import InferenceCoordinator

class Hanging:
    name, version = "tiny", ""
    def detect(self, image):
        threading.Event().wait()

policy = Policy(mode=Mode.DEVICE, timeout=0.1, cloud_reserve=0.0, backoff=lambda n: 0.0)
InferenceCoordinator(Hanging(), None, policy).ask(b"picture")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], timeout=30, capture_output=True, text=True, check=False
    )
    assert "DEVICE_TIMEOUT" in ended.stderr
    assert ended.returncode == 1


def test_errors_survive_copies_and_pickles() -> None:
    coordinator = InferenceCoordinator(
        failing(RuntimeError("CUDA error 700")), None, policy(Mode.DEVICE)
    )
    with coordinator, pytest.raises(DeviceError) as caught:
        coordinator.ask(b"picture")
    for again in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert type(again) is DeviceError
        assert str(again) == str(caught.value)
        assert again.attempts == caught.value.attempts
        assert again.__notes__ == caught.value.__notes__
        assert (again.code, again.reason) == (caught.value.code, caught.value.reason)
