"""A server's pushback, and the end of a request."""

import gc
import time
import weakref
from typing import Any

import grpc
import pytest

from edge.decide.coordinator import InferenceCoordinator
from edge.decide.policy import Mode, Policy
from servicekit.errors import SightlineError, from_rpc_error, to_status
from tests.fakes.inference import (
    PushBack,
    Refuse,
    Reply,
    serving,
)
from tests.unit.edge.cloud.uploading import LARGE, new_client


@pytest.mark.parametrize(
    ("pushback", "retry_after", "do_not_retry"),
    [
        ("250", 0.25, False),
        ("0", 0.0, False),
        ("-1", None, True),
        ("soon", None, True),
        ("9" * 400, None, True),
    ],
)
def test_a_servers_pushback_is_understood(
    pushback: str, retry_after: float | None, do_not_retry: bool
) -> None:
    with (
        serving(PushBack(pushback)) as fake,
        new_client(fake) as client,
        pytest.raises(SightlineError) as caught,
    ):
        client.infer([b"picture"])
    assert (caught.value.retry_after, caught.value.do_not_retry) == (retry_after, do_not_retry)
    assert len(fake.seen) == 1


def test_a_pushback_does_not_shorten_what_the_error_itself_says() -> None:
    class Failed(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.RESOURCE_EXHAUSTED

        def details(self) -> str:
            return "full"

        def trailing_metadata(self) -> Any:
            busy = SightlineError(self.code(), "FULL", "full", retry_after=2.0)
            details = to_status(busy).SerializeToString()
            return (("grpc-status-details-bin", details), ("grpc-retry-pushback-ms", "10"))

    error = from_rpc_error(Failed())
    assert (error.reason, error.retry_after, error.do_not_retry) == ("FULL", 2.0, False)


def test_a_pushback_below_zero_ends_the_retries() -> None:
    policy = Policy(mode=Mode.CLOUD, backoff=lambda n: 0.01)
    with (
        serving(PushBack("-1"), Reply()) as fake,
        new_client(fake) as client,
        InferenceCoordinator(None, client, policy) as coordinator,
        pytest.raises(SightlineError, match="not now"),
    ):
        coordinator.ask(b"picture")
    assert len(fake.seen) == 1


def test_callbacks_of_a_request_that_has_ended_come_at_once() -> None:
    with serving(Reply()) as fake, new_client(fake) as client:
        pending = client.send(client.prepare([b"picture"]), timeout=10)
        pending.result()
        called: list[int] = []
        pending.add_done_callback(lambda: called.append(1))
        pending.cancel()
        assert called == [1]
        assert pending.result().model_name == "plates"


def test_an_answer_that_cannot_be_used_ends_the_wait() -> None:
    with serving(Reply()) as fake, new_client(fake) as client:
        call = client.prepare([b"picture"])
        call.scales = {0: None}  # type: ignore[dict-item]  # goes wrong when the answer is read
        with pytest.raises(SightlineError) as caught:
            client.send(call, timeout=10).result()
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.INTERNAL,
        "ANSWER_UNUSABLE",
    )


def test_a_failed_request_leaves_memory_without_the_garbage_collector() -> None:
    denied = SightlineError(grpc.StatusCode.PERMISSION_DENIED, "NO", "no")
    with serving(Refuse(denied), uploads=[Reply()]) as fake, new_client(fake) as client:
        pending = client.send(client.prepare([LARGE]), timeout=10)
        left = weakref.ref(pending)
        gc.disable()
        try:
            with pytest.raises(SightlineError):
                pending.result()
            del pending
            deadline = time.monotonic() + 5  # gRPC's thread may still be on its way out
            while left() is not None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            gc.enable()
