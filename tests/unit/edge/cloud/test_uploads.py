"""Uploads of large images: one upload per request, references, and failures."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc
import pytest
from sightline.inference.v1 import inference_pb2, inference_service_pb2_grpc

from edge.channel import Endpoint
from edge.cloud.aio_client import AsyncInferenceClient
from edge.cloud.call import InferCall
from edge.cloud.client import InferenceClient
from edge.cloud.messages import prepare
from edge.cloud.pending import PendingAnswer
from edge.cloud.transport import InferenceTransport
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.policy import Mode, Policy
from servicekit.errors import FieldViolation, SightlineError, invalid
from tests.fakes.inference import (
    Forget,
    Hang,
    Refuse,
    Reply,
    Seen,
    Wait,
    scratch,
    serving,
)
from tests.unit.edge.cloud.uploading import FULL, LARGE, new_client

UNAVAILABLE = Refuse(SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "draining"))


def sent(seen: Seen) -> list[str | bytes]:
    """Return the reference or the bytes of each image of a call."""
    return [image.reference or image.data for image in seen.request.images]


def test_a_large_image_is_uploaded_and_referred_to() -> None:
    with serving(Reply(), uploads=[Reply()]) as fake, new_client(fake) as client:
        answer = client.infer([LARGE], image_ids=["frame-1"])
    (seen,) = fake.seen
    assert fake.uploads == [LARGE]
    assert sent(seen) == ["ref-0"]
    (image,) = seen.request.images
    assert (image.image_id, image.sha256) == ("frame-1", hashlib.sha256(LARGE).digest())
    assert answer.bytes_sent == len(LARGE)


@pytest.mark.parametrize(("above", "uploads"), [(len(LARGE), 0), (len(LARGE) - 1, 1), (None, 0)])
def test_the_size_is_a_setting(above: int | None, uploads: int) -> None:
    with serving(Reply(), uploads=[Reply()]) as fake, new_client(fake, above) as client:
        client.infer([LARGE])
    assert len(fake.uploads) == uploads


def test_a_size_below_none_is_refused() -> None:
    with pytest.raises(SightlineError, match="upload_above_bytes must be >= 0 or None, got -1"):
        InferenceClient("127.0.0.1:1", upload_above_bytes=-1)


def test_small_and_large_images_go_together() -> None:
    with serving(Reply(), uploads=[Reply()]) as fake, new_client(fake) as client:
        answer = client.infer([b"small", LARGE, LARGE[::-1]])
    assert sent(fake.seen[0]) == [b"small", "ref-0", "ref-1"]
    assert fake.uploads == [LARGE, LARGE[::-1]]
    assert answer.bytes_sent == 5 + 2 * len(LARGE)


def test_a_retry_sends_the_reference_only() -> None:
    policy = Policy(mode=Mode.CLOUD, backoff=lambda n: 0.01)
    with (
        serving(UNAVAILABLE, UNAVAILABLE, Reply(), uploads=[Reply()]) as fake,
        new_client(fake) as client,
        InferenceCoordinator(None, client, policy) as coordinator,
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
        new_client(fake) as client,
        InferenceCoordinator(None, client, policy) as coordinator,
    ):
        answer = coordinator.ask(LARGE)
    assert [attempt.error for attempt in answer.attempts] == ["DRAINING", ""]
    assert (fake.upload_calls, len(fake.seen)) == (2, 1)
    assert answer.cloud_bytes >= len(LARGE)


def test_a_lost_reference_is_uploaded_once_more() -> None:
    with serving(Forget(), Reply(), uploads=[Reply()]) as fake, new_client(fake) as client:
        answer = client.infer([LARGE])
    assert [sent(seen) for seen in fake.seen] == [["ref-0"], ["ref-1"]]
    assert answer.bytes_sent == 2 * len(LARGE)


def test_lost_again_the_image_goes_with_the_request() -> None:
    with (
        serving(Forget(), Forget(), Reply(), uploads=[Reply()]) as fake,
        new_client(fake) as client,
    ):
        answer = client.infer([LARGE])
    assert [sent(seen) for seen in fake.seen] == [["ref-0"], ["ref-1"], [LARGE]]
    assert answer.bytes_sent == 3 * len(LARGE)


GONE = inference_pb2.ImageResult(
    error=inference_pb2.ImageError(code=5, reason="REFERENCE_GONE", message="gone")
)


def test_a_reference_that_is_lost_among_good_images_is_uploaded_once_more() -> None:
    partly = Reply([scratch("a"), GONE, scratch("c")])
    pictures = [b"small", LARGE, LARGE[::-1]]
    with serving(partly, Reply(), uploads=[Reply()]) as fake, new_client(fake) as client:
        answer = client.infer(pictures, image_ids=["a", "b", "c"])
    assert [sent(seen) for seen in fake.seen] == [
        [b"small", "ref-0", "ref-1"],
        [b"small", "ref-2", "ref-1"],
    ]
    assert fake.uploads == [LARGE, LARGE[::-1], LARGE]
    assert [result.error for result in answer.results] == [None] * 3
    assert answer.bytes_sent == 2 * 5 + 3 * len(LARGE)


def test_an_error_of_an_image_that_was_not_referred_to_is_its_answer() -> None:
    with serving(Reply([GONE, scratch()]), uploads=[Reply()]) as fake, new_client(fake) as client:
        answer = client.infer([b"small", LARGE])
    first, second = answer.results
    assert first.error is not None
    assert (first.error.reason, second.error) == ("REFERENCE_GONE", None)
    assert len(fake.seen) == 1


def test_a_lost_reference_beside_a_bad_image_does_not_hide_its_answer() -> None:
    all_bad = SightlineError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "IMAGES_INVALID",
        "all bad",
        violations=[
            FieldViolation("images[0].data", "must be a picture"),
            FieldViolation("images[1].reference", "must be known"),
        ],
    )
    script = (Refuse(all_bad), Reply())
    with serving(*script, uploads=[Reply()]) as fake, new_client(fake) as client:
        client.infer([b"small", LARGE])
    assert [sent(seen) for seen in fake.seen] == [[b"small", "ref-0"], [b"small", LARGE]]


def test_images_that_are_bad_themselves_are_not_sent_again() -> None:
    fields = [FieldViolation(f"images[{n}].data", "must be a picture") for n in (0, 1)]
    bad = SightlineError(
        grpc.StatusCode.INVALID_ARGUMENT, "IMAGES_INVALID", "all bad", violations=fields
    )
    with (
        serving(Refuse(bad), uploads=[Reply()]) as fake,
        new_client(fake) as client,
        pytest.raises(SightlineError, match="all bad"),
    ):
        client.infer([b"small", LARGE])
    assert len(fake.seen) == 1


def test_a_key_that_seems_reused_is_asked_again_with_the_image_itself() -> None:
    # A service that cannot read a reference takes the question for another one.
    reused = Refuse(
        SightlineError(grpc.StatusCode.FAILED_PRECONDITION, "IDEMPOTENCY_KEY_REUSED", "reused")
    )
    with serving(reused, Reply(), uploads=[Reply()]) as fake, new_client(fake) as client:
        client.infer([LARGE])
    assert [sent(seen) for seen in fake.seen] == [["ref-0"], [LARGE]]
    with (
        serving(reused, uploads=[Reply()]) as fake,
        new_client(fake) as client,
        pytest.raises(SightlineError, match="IDEMPOTENCY_KEY_REUSED"),
    ):
        client.infer([LARGE])
    assert len(fake.seen) == 2  # it was reused


def test_one_loss_that_two_tries_have_seen_is_one_loss() -> None:
    call = prepare([LARGE])
    for loss in ("first", "second"):
        assert call.next_upload(1000) == 0
        call.uploaded(0, loss)
        assert call.next_upload(1000) is None
        for _ in range(2):
            call.lost({0: loss})
    assert call.next_upload(1000) is None
    request, references = call.request_to_send()
    assert (request.images[0].data, references) == (LARGE, {})


def test_not_found_of_something_else_is_no_lost_reference() -> None:
    unknown = Refuse(SightlineError(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no such model"))
    with (
        serving(unknown, uploads=[Reply()]) as fake,
        new_client(fake) as client,
        pytest.raises(SightlineError, match="MODEL_NOT_FOUND"),
    ):
        client.infer([LARGE])
    assert (len(fake.seen), len(fake.uploads)) == (1, 1)


def test_a_service_without_uploads_gets_the_image_and_is_not_asked_again() -> None:
    with serving(Reply()) as fake, new_client(fake) as client:
        for _ in range(2):
            client.infer([LARGE])
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
def test_where_there_is_no_room_the_image_goes_with_the_request(code: str, reason: str) -> None:
    refused = Refuse(SightlineError(grpc.StatusCode[code], reason, "no room"))
    with serving(Reply(), uploads=[refused, Reply()]) as fake, new_client(fake) as client:
        client.infer([LARGE])
        client.infer([LARGE])
    assert [sent(seen) for seen in fake.seen] == [[LARGE], ["ref-0"]]


def test_a_service_says_for_how_long_it_has_no_room() -> None:
    full = SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOAD_QUOTA_EXCEEDED", "full", retry_after=300
    )
    with serving(Reply(), uploads=[Refuse(full), Reply()]) as fake, new_client(fake) as client:
        for _ in range(2):
            client.infer([LARGE])
    assert [sent(seen) for seen in fake.seen] == [[LARGE]] * 2
    assert fake.upload_calls == 1


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (SightlineError(grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED", "no such call"), 600),
        (SightlineError(FULL, "UPLOAD_STORE_FULL", "full", retry_after=60), 60),
        (SightlineError(FULL, "UPLOAD_QUOTA_EXCEEDED", "full", retry_after=3600), 600),
        (SightlineError(grpc.StatusCode.UNAVAILABLE, "UPLOAD_STORE_UNAVAILABLE", "down"), 0),
    ],
    ids=lambda value: value.reason if isinstance(value, SightlineError) else "",
)
def test_uploads_are_tried_again_after_a_while(error: SightlineError, seconds: float) -> None:
    now = 5.0
    endpoint = Endpoint("127.0.0.1:1")
    with endpoint.channel() as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        transport = InferenceTransport(endpoint, stub, 1000, lambda: now)
        assert transport.next_upload(prepare([LARGE])) == 0
        assert transport.refuses_uploads(error)
        if seconds:
            now = 5.0 + seconds - 0.001
            assert transport.next_upload(prepare([LARGE])) is None
        now = 5.0 + seconds
        assert transport.next_upload(prepare([LARGE])) == 0


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "INVALID_ARGUMENT", "UNAVAILABLE"])
def test_other_errors_of_an_upload_are_those_of_the_request(code: str) -> None:
    refused = Refuse(SightlineError(grpc.StatusCode[code], "NO", "no"))
    with (
        serving(Reply(), uploads=[refused]) as fake,
        new_client(fake) as client,
        pytest.raises(SightlineError) as caught,
    ):
        client.infer([LARGE])
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode[code], "NO")
    assert fake.seen == []


def test_an_upload_that_is_refused_names_the_image() -> None:
    refused = invalid("header.size_bytes", "must be at most 9", reason="IMAGE_TOO_LARGE")
    with (
        serving(Reply(), uploads=[Reply(), Refuse(refused)]) as fake,
        new_client(fake) as client,
        pytest.raises(SightlineError) as caught,
    ):
        client.infer([b"small", LARGE, LARGE[::-1]])
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert caught.value.violations == (FieldViolation("images[2]", "must be at most 9"),)
    assert "images[2]: header.size_bytes must be at most 9" in str(caught.value)


def test_upload_and_request_share_one_timeout() -> None:
    with serving(Hang(), uploads=[Hang()]) as fake, new_client(fake) as client:
        began = time.monotonic()
        with pytest.raises(SightlineError) as caught:
            client.infer([LARGE], timeout=0.4)
        assert 0.35 < time.monotonic() - began < 3
        assert fake.left.wait(5)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert fake.seen == []


def test_what_the_upload_took_is_taken_off_the_request_time() -> None:
    with serving(Hang(), uploads=[Wait(0.5)]) as fake, new_client(fake) as client:
        began = time.monotonic()
        with pytest.raises(SightlineError) as caught:
            client.infer([LARGE], timeout=1.0)
        assert 0.95 < time.monotonic() - began < 3
        assert fake.left.wait(5)
        remaining = fake.seen[0].time_remaining
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert remaining is not None
    assert remaining < 0.6


def test_cancelling_ends_an_upload() -> None:
    with serving(Reply(), uploads=[Hang()]) as fake, new_client(fake) as client:
        pending = client.send(client.prepare([LARGE]), timeout=20)
        assert fake.called.wait(5)
        pending.cancel()
        with pytest.raises(SightlineError) as caught:
            pending.result()
        assert fake.left.wait(5)
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert fake.seen == []


def test_cancelling_between_upload_and_request_ends_the_request() -> None:
    class Cancelling(InferenceTransport):
        def infer(self, call: InferCall, timeout: float) -> Any:
            assert fake.uploads == [LARGE]
            cancel.result(5)()
            return super().infer(call, timeout)

    cancel: Future[Callable[[], None]] = Future()
    with serving(Hang(), uploads=[Reply()]) as fake:
        endpoint = Endpoint(fake.target)
        with endpoint.channel() as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            pending = PendingAnswer(prepare([LARGE]), Cancelling(endpoint, stub, 1000), 20)
            cancel.set_result(pending.cancel)
            with pytest.raises(SightlineError) as caught:
                pending.result()
    assert caught.value.code is grpc.StatusCode.CANCELLED


async def test_a_cancelled_task_ends_its_upload() -> None:
    with serving(Reply(), uploads=[Hang()]) as fake:
        async with AsyncInferenceClient(fake.target, upload_above_bytes=1000) as client:
            task = asyncio.create_task(client.infer([LARGE]))
            await asyncio.to_thread(fake.called.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(fake.left.wait, 5)


async def test_asyncio_uploads_too() -> None:
    with serving(Reply(), uploads=[Reply()]) as fake:
        async with AsyncInferenceClient(fake.target, upload_above_bytes=1000) as client:
            await asyncio.gather(*(client.infer([LARGE]) for _ in range(4)))
    assert len(fake.uploads) == 4
    assert sorted(str(sent(seen)[0]) for seen in fake.seen) == [f"ref-{n}" for n in range(4)]


def test_one_request_sent_twice_at_once_is_well_formed() -> None:
    with serving(Reply(), uploads=[Reply()]) as fake, new_client(fake) as client:
        call = client.prepare([LARGE])
        pending = [client.send(call, timeout=10) for _ in range(2)]
        assert [len(answer.result().results) for answer in pending] == [1, 1]
    assert all(str(sent(seen)[0]).startswith("ref-") for seen in fake.seen)


def test_a_closed_client_is_an_error_in_the_midst_of_it() -> None:
    with serving(Reply(), uploads=[Hang()]) as fake:
        client = new_client(fake)
        errors: list[SightlineError] = []

        def ask() -> None:
            try:
                client.infer([LARGE])
            except SightlineError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert fake.called.wait(5)
        client.close()
        thread.join(5)
    assert [error.code for error in errors] == [grpc.StatusCode.CANCELLED]
