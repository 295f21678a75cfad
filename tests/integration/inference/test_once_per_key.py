"""The idempotency key over a real socket: replays, twins, restarts."""

import signal
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from servicekit.errors import from_rpc_error
from tests.integration.inference.process import Client, Server, ask, client, failure, started
from tests.unit.inference_service.tiny_onnx import corrupt, picture

RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))
Sent = tuple[bytes, bool]


Metadata = tuple[tuple[str, str | bytes], ...]


def key(value: str | None = None) -> Metadata:
    return (("idempotency-key", value or str(uuid.uuid4())),)


def send(to: Client, request: inference_service_pb2.InferRequest, metadata: Metadata) -> Sent:
    """Returns the answer as it came over the wire, and whether it was marked as replayed."""
    answer, call = to.raw.with_call(request.SerializeToString(), timeout=30, metadata=metadata)
    return answer, ("idempotent-replayed", "true") in (call.trailing_metadata() or ())


def test_a_replay_is_the_same_to_the_byte(quick: Client) -> None:
    metadata, request = key(), ask(RED, BLUE)
    first, replayed = send(quick, request, metadata)
    assert not replayed
    for _ in range(3):
        assert send(quick, request, metadata) == (first, True)


def test_without_a_key_every_call_is_its_own(quick: Client) -> None:
    assert send(quick, ask(RED), ()) != send(quick, ask(RED), ())  # their timings differ


def test_another_request_under_the_same_key(quick: Client) -> None:
    metadata = key()
    send(quick, ask(RED), metadata)
    others = [
        ask(BLUE),
        ask(RED, RED),
        ask(RED, model=inference_pb2.ModelHint(version="1")),
        ask(RED, parameters=inference_pb2.InferParameters(confidence_threshold=0.3)),
    ]
    for other in others:
        error = failure(lambda other=other: send(quick, other, metadata))
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION
        assert error.reason == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize("value", ["x", str(uuid.uuid1())])
def test_a_key_that_is_no_uuid4(quick: Client, value: str) -> None:
    error = failure(lambda: send(quick, ask(RED), key(value)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in error.violations] == ["idempotency-key"]


def test_a_refused_request_does_not_use_up_its_key(quick: Client) -> None:
    metadata = key()
    assert failure(lambda: send(quick, ask(b"no picture"), metadata)).reason == (
        "IMAGE_TYPE_UNSUPPORTED"
    )
    assert send(quick, ask(RED), metadata)[1] is False


def test_a_picture_that_cannot_be_decoded_fails_the_same_way_again(quick: Client) -> None:
    metadata, request = key(), ask(corrupt())
    first = failure(lambda: send(quick, request, metadata))
    again = failure(lambda: send(quick, request, metadata))
    assert (again.reason, again.message) == (first.reason, first.message)
    assert again.reason == "IMAGE_CORRUPT"


@pytest.fixture
def slow_server(tmp_path: Path, slow: Path) -> Iterator[Server]:
    flags = ["--model-repository", str(slow), "--workers", "1"]
    with started(tmp_path, *flags) as server:
        yield server


def test_twins_at_the_same_time_get_one_answer(slow_server: Server) -> None:
    metadata, request = key(), ask(RED).SerializeToString()
    with client(slow_server) as one, client(slow_server) as two:
        calls = [each.raw.future(request, timeout=60, metadata=metadata) for each in (one, two) * 4]
        assert len({call.result() for call in calls}) == 1
        marked = [("idempotent-replayed", "true") in call.trailing_metadata() for call in calls]
    assert sorted(marked) == [False] + [True] * 7


def test_a_caller_that_gives_up_leaves_its_twin_its_answer(slow_server: Server) -> None:
    metadata, request = key(), ask(RED).SerializeToString()
    with client(slow_server) as one, client(slow_server) as two:
        first = one.raw.future(request, timeout=60, metadata=metadata)
        second = two.raw.future(request, timeout=60, metadata=metadata)
        first.cancel()  # type: ignore[no-untyped-call]
        assert second.result()


def test_a_deadline_that_passed_does_not_use_up_the_key(slow_server: Server) -> None:
    metadata, request = key(), ask(RED)
    with client(slow_server) as made:
        with pytest.raises(grpc.RpcError) as caught:
            made.raw(request.SerializeToString(), timeout=0.05, metadata=metadata)
        assert from_rpc_error(caught.value).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert send(made, request, metadata)[1] is False
        assert send(made, request, metadata)[1] is True


def test_answers_in_a_file_outlive_the_process(tmp_path: Path, colours: Path) -> None:
    flags = [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--idempotency-database", str(tmp_path / "claims.sqlite")),
    ]
    metadata = key()
    with started(tmp_path, *flags) as server, client(server) as made:
        first = send(made, ask(RED), metadata)
        server.stop(signal.SIGKILL)
    with started(tmp_path, *flags) as server, client(server) as made:
        assert send(made, ask(RED), metadata) == (first[0], True)


def test_a_server_killed_at_work_leaves_a_claim_that_runs_out(tmp_path: Path, slow: Path) -> None:
    database = tmp_path / "claims.sqlite"
    flags = [
        *("--model-repository", str(slow), "--workers", "1"),
        *("--idempotency-database", str(database)),
    ]
    metadata, request = key(), ask(*[RED] * 10)  # enough work to be killed at it
    with started(tmp_path, *flags) as server, client(server) as made:
        call = made.raw.future(request.SerializeToString(), timeout=3, metadata=metadata)
        _wait_for_claim(database)
        server.stop(signal.SIGKILL)
        assert call.exception() is not None
    with started(tmp_path, *flags) as server, client(server) as made:
        for _ in range(100):
            try:
                _, replayed = send(made, request, metadata)
            except grpc.RpcError as caught:
                error = from_rpc_error(caught)
                assert error.code is grpc.StatusCode.ABORTED
                assert error.reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
                assert error.retry_after is not None
                time.sleep(error.retry_after)
            else:
                assert not replayed
                return
        raise AssertionError("the claim never ran out")


def _wait_for_claim(database: Path) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with closing(sqlite3.connect(database)) as reader:
            if reader.execute("SELECT count(*) FROM claims").fetchone()[0]:
                return
        time.sleep(0.005)
    raise AssertionError("nothing was claimed")
