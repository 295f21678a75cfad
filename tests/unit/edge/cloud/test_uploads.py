"""Large pictures: uploaded once and referred to, and what happens where that does not work."""

import asyncio
import hashlib
import threading
import time
from typing import Any

import grpc
import pytest

from edge.cloud.aio_client import AsyncInferenceClient
from edge.cloud.client import InferenceClient
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.policy import Mode, Policy
from servicekit.errors import SightlineError
from tests.fakes.inference import (
    FakeInference,
    Forget,
    Hang,
    PushBack,
    Refuse,
    Reply,
    Seen,
    serving,
)

LARGE = bytes(range(256)) * 2560  # 640 KiB: more than one chunk
UNAVAILABLE = Refuse(SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "draining"))


def client(fake: FakeInference, above: int | None = 1000) -> InferenceClient:
    return InferenceClient(fake.target, upload_above_bytes=above)


def sent(seen: Seen) -> list[str | bytes]:
    """How each picture of a call came: its reference, or itself."""
    return [image.reference or image.data for image in seen.request.images]


def test_a_large_picture_is_uploaded_and_referred_to() -> None:
    with serving(Reply(), uploads=[Reply()]) as fake, client(fake) as asked:
        answer = asked.infer([LARGE], image_ids=["frame-1"])
    (seen,) = fake.seen
    assert fake.uploads == [LARGE]
    assert sent(seen) == ["ref-0"]
    (image,) = seen.request.images
    assert (image.image_id, image.sha256) == ("frame-1", hashlib.sha256(LARGE).digest())
    assert answer.bytes_sent == len(LARGE)


@pytest.mark.parametrize(("above", "uploads"), [(len(LARGE), 0), (len(LARGE) - 1, 1), (None, 0)])
def test_the_size_is_a_setting(above: int | None, uploads: int) -> None:
    with serving(Reply(), uploads=[Reply()]) as fake, client(fake, above) as asked:
        asked.infer([LARGE])
    assert len(fake.uploads) == uploads


def test_a_size_below_none_is_refused() -> None:
    with pytest.raises(SightlineError, match="upload_above_bytes must be >= 0 or None, is -1"):
        InferenceClient("127.0.0.1:1", upload_above_bytes=-1)


def test_small_and_large_pictures_go_together() -> None:
    with serving(Reply(), uploads=[Reply()]) as fake, client(fake) as asked:
        answer = asked.infer([b"small", LARGE, LARGE[::-1]])
    assert sent(fake.seen[0]) == [b"small", "ref-0", "ref-1"]
    assert fake.uploads == [LARGE, LARGE[::-1]]
    assert answer.bytes_sent == 5 + 2 * len(LARGE)


def test_a_retry_sends_the_reference_only() -> None:
    policy = Policy(mode=Mode.CLOUD, backoff=lambda n: 0.01)
    with (
        serving(UNAVAILABLE, UNAVAILABLE, Reply(), uploads=[Reply()]) as fake,
        client(fake) as asked,
        InferenceCoordinator(None, asked, policy) as coordinator,
    ):
        answer = coordinator.ask(LARGE)
    assert [sent(seen) for seen in fake.seen] == [["ref-0"]] * 3
    assert len(fake.uploads) == 1
    assert len({seen.metadata["idempotency-key"] for seen in fake.seen}) == 1
    assert answer.cloud_bytes == len(LARGE)


def test_an_upload_that_failed_is_retried_as_a_whole() -> None:
    policy = Policy(mode=Mode.CLOUD, backoff=lambda n: 0.01)
    with (
        serving(Reply(), uploads=[UNAVAILABLE, Reply()]) as fake,
        client(fake) as asked,
        InferenceCoordinator(None, asked, policy) as coordinator,
    ):
        answer = coordinator.ask(LARGE)
    assert [attempt.error for attempt in answer.attempts] == ["DRAINING", ""]
    assert (fake.upload_calls, len(fake.seen)) == (2, 1)
    assert answer.cloud_bytes >= len(LARGE)


def test_a_lost_reference_is_uploaded_once_more() -> None:
    with serving(Forget(), Reply(), uploads=[Reply()]) as fake, client(fake) as asked:
        answer = asked.infer([LARGE])
    assert [sent(seen) for seen in fake.seen] == [["ref-0"], ["ref-1"]]
    assert answer.bytes_sent == 2 * len(LARGE)


def test_lost_again_the_picture_goes_with_the_question() -> None:
    with serving(Forget(), Forget(), Reply(), uploads=[Reply()]) as fake, client(fake) as asked:
        answer = asked.infer([LARGE])
    assert [sent(seen) for seen in fake.seen] == [["ref-0"], ["ref-1"], [LARGE]]
    assert answer.bytes_sent == 3 * len(LARGE)


def test_not_found_of_something_else_is_no_lost_reference() -> None:
    unknown = Refuse(SightlineError(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no such model"))
    with (
        serving(unknown, uploads=[Reply()]) as fake,
        client(fake) as asked,
        pytest.raises(SightlineError, match="MODEL_NOT_FOUND"),
    ):
        asked.infer([LARGE])
    assert (len(fake.seen), len(fake.uploads)) == (1, 1)


def test_a_service_without_uploads_gets_the_picture_and_is_not_asked_again() -> None:
    with serving(Reply()) as fake, client(fake) as asked:
        for _ in range(2):
            asked.infer([LARGE])
    assert [sent(seen) for seen in fake.seen] == [[LARGE]] * 2
    assert fake.upload_calls == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("RESOURCE_EXHAUSTED", "UPLOAD_QUOTA_EXCEEDED"),
        ("RESOURCE_EXHAUSTED", "UPLOAD_STORE_FULL"),
        ("UNAVAILABLE", "UPLOAD_STORE_UNAVAILABLE"),
    ],
)
def test_where_there_is_no_room_the_picture_goes_with_the_question(code: str, reason: str) -> None:
    refused = Refuse(SightlineError(grpc.StatusCode[code], reason, "no room"))
    with serving(Reply(), uploads=[refused, Reply()]) as fake, client(fake) as asked:
        asked.infer([LARGE])
        asked.infer([LARGE])
    assert [sent(seen) for seen in fake.seen] == [[LARGE], ["ref-0"]]


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "INVALID_ARGUMENT", "UNAVAILABLE"])
def test_other_errors_of_an_upload_are_the_questions(code: str) -> None:
    refused = Refuse(SightlineError(grpc.StatusCode[code], "NO", "no"))
    with (
        serving(Reply(), uploads=[refused]) as fake,
        client(fake) as asked,
        pytest.raises(SightlineError) as caught,
    ):
        asked.infer([LARGE])
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode[code], "NO")
    assert fake.seen == []


def test_upload_and_question_share_one_timeout() -> None:
    with serving(Hang(), uploads=[Hang()]) as fake, client(fake) as asked:
        began = time.monotonic()
        with pytest.raises(SightlineError) as caught:
            asked.infer([LARGE], timeout=0.4)
        assert 0.35 < time.monotonic() - began < 3
        assert fake.left.wait(5)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    with serving(Reply(), uploads=[Reply()]) as fake, client(fake) as asked:
        asked.infer([LARGE], timeout=5.0)
        remaining = fake.seen[0].time_remaining
    assert remaining is not None
    assert remaining < 5.05


def test_cancelling_ends_an_upload() -> None:
    with serving(Reply(), uploads=[Hang()]) as fake, client(fake) as asked:
        pending = asked.send(asked.prepare([LARGE]), timeout=20)
        assert fake.called.wait(5)
        pending.cancel()
        with pytest.raises(SightlineError) as caught:
            pending.result()
        assert fake.left.wait(5)
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert fake.seen == []


async def test_a_cancelled_task_ends_its_upload() -> None:
    with serving(Reply(), uploads=[Hang()]) as fake:
        async with AsyncInferenceClient(fake.target, upload_above_bytes=1000) as asked:
            task = asyncio.create_task(asked.infer([LARGE]))
            await asyncio.to_thread(fake.called.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(fake.left.wait, 5)


async def test_asyncio_uploads_too() -> None:
    with serving(Reply(), uploads=[Reply()]) as fake:
        async with AsyncInferenceClient(fake.target, upload_above_bytes=1000) as asked:
            await asyncio.gather(*(asked.infer([LARGE]) for _ in range(4)))
    assert len(fake.uploads) == 4
    assert sorted(str(sent(seen)[0]) for seen in fake.seen) == [f"ref-{n}" for n in range(4)]


def test_one_question_sent_twice_at_once_is_well_formed() -> None:
    with serving(Reply(), uploads=[Reply()]) as fake, client(fake) as asked:
        call = asked.prepare([LARGE])
        pending = [asked.send(call, timeout=10) for _ in range(2)]
        assert [len(one.result().results) for one in pending] == [1, 1]
    assert all(str(sent(seen)[0]).startswith("ref-") for seen in fake.seen)


def test_a_closed_client_is_an_error_in_the_midst_of_it() -> None:
    with serving(Reply(), uploads=[Hang()]) as fake:
        asked = client(fake)
        errors: list[SightlineError] = []

        def ask() -> None:
            try:
                asked.infer([LARGE])
            except SightlineError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert fake.called.wait(5)
        asked.close()
        thread.join(5)
    assert [error.code for error in errors] == [grpc.StatusCode.CANCELLED]


@pytest.mark.parametrize(
    ("said", "retry_after", "do_not_retry"),
    [("250", 0.25, False), ("0", 0.0, False), ("-1", None, True), ("soon", None, True)],
)
def test_a_servers_pushback_is_understood(
    said: str, retry_after: float | None, do_not_retry: bool
) -> None:
    with (
        serving(PushBack(said)) as fake,
        client(fake) as asked,
        pytest.raises(SightlineError) as caught,
    ):
        asked.infer([b"picture"])
    assert (caught.value.retry_after, caught.value.do_not_retry) == (retry_after, do_not_retry)
    assert len(fake.seen) == 1


def test_a_pushback_below_zero_ends_the_retries() -> None:
    policy = Policy(mode=Mode.CLOUD, backoff=lambda n: 0.01)
    with (
        serving(PushBack("-1"), Reply()) as fake,
        client(fake) as asked,
        InferenceCoordinator(None, asked, policy) as coordinator,
        pytest.raises(SightlineError, match="not now"),
    ):
        coordinator.ask(b"picture")
    assert len(fake.seen) == 1


def test_nothing_is_left_behind_by_an_interrupted_question(caplog: Any) -> None:
    with serving(Hang()) as fake, client(fake) as asked:
        pending = asked.send(asked.prepare([b"picture"]), timeout=10)
        assert fake.called.wait(5)
        pending.cancel()
        called: list[int] = []
        pending.add_done_callback(lambda: called.append(1))
        with pytest.raises(SightlineError):
            pending.result()
        pending.cancel()
        assert called == [1]
    assert caplog.records == []
