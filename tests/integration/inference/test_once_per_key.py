"""The idempotency key over a real socket: replays, twins, restarts."""

import signal
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.errors import from_rpc_error
from tests.faults.disks import filled, limited, small_disk
from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    failure,
    started,
)
from tests.unit.inference_service.tiny_onnx import corrupt, picture

RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))
LEASE_SECONDS = 1
Sent = tuple[bytes, bool]
Metadata = tuple[tuple[str, str | bytes], ...]


def key(value: str | None = None) -> Metadata:
    return (("idempotency-key", value or str(uuid.uuid4())),)


def send(
    to: InferenceStub, request: inference_service_pb2.InferRequest, metadata: Metadata
) -> Sent:
    """Return the answer as it came over the wire, and True if it was marked as replayed."""
    answer, call = to.raw.with_call(request.SerializeToString(), timeout=30, metadata=metadata)
    return answer, ("idempotent-replayed", "true") in (call.trailing_metadata() or ())


def test_a_replay_is_the_same_to_the_byte(quick: InferenceStub) -> None:
    metadata, request = key(), ask(RED, BLUE)
    first, replayed = send(quick, request, metadata)
    assert not replayed
    for _ in range(3):
        assert send(quick, request, metadata) == (first, True)


def test_without_a_key_every_call_is_its_own(quick: InferenceStub) -> None:
    assert send(quick, ask(RED), ()) != send(quick, ask(RED), ())  # their timings differ


def test_another_request_under_the_same_key(quick: InferenceStub) -> None:
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


@pytest.mark.parametrize("value", ["x", "c232ab00-9414-11ec-b3c8-9f6bdeced846"])
def test_a_key_that_is_no_uuid4(quick: InferenceStub, value: str) -> None:
    error = failure(lambda: send(quick, ask(RED), key(value)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in error.violations] == ["idempotency-key"]


def test_a_refused_request_does_not_use_up_its_key(quick: InferenceStub) -> None:
    metadata = key()
    assert failure(lambda: send(quick, ask(b"no picture"), metadata)).reason == (
        "IMAGE_TYPE_UNSUPPORTED"
    )
    assert send(quick, ask(RED), metadata)[1] is False


def test_an_image_that_cannot_be_decoded_fails_the_same_way_again(quick: InferenceStub) -> None:
    metadata, request = key(), ask(corrupt())
    first = failure(lambda: send(quick, request, metadata))
    again = failure(lambda: send(quick, request, metadata))
    assert (again.reason, again.message) == (first.reason, first.message)
    assert again.reason == "IMAGE_CORRUPT"


def test_an_answer_without_an_image_that_may_come_yet_is_not_kept(quick: InferenceStub) -> None:
    metadata, gone = key(), inference_pb2.Image(reference="of an upload that is not there")
    request = ask(RED, gone)
    first, replayed = send(quick, request, metadata)
    results = inference_service_pb2.InferResponse.FromString(first).results
    assert [result.HasField("error") for result in results] == [False, True]
    assert not replayed
    assert send(quick, request, metadata)[1] is False


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory, slow: Path) -> Iterator[InferenceProcess]:
    flags = ["--model-repository", str(slow), "--workers", "1"]
    with started(tmp_path_factory.mktemp("slow-server"), *flags) as server:
        yield server


def test_twins_at_the_same_time_get_one_answer(slow_server: InferenceProcess) -> None:
    metadata, request = key(), ask(RED).SerializeToString()
    with client(slow_server) as caller, client(slow_server) as other_caller:
        calls = [
            each.raw.future(request, timeout=60, metadata=metadata)
            for each in (caller, other_caller) * 4
        ]
        assert len({call.result() for call in calls}) == 1
        marked = [("idempotent-replayed", "true") in call.trailing_metadata() for call in calls]
    assert sorted(marked) == [False] + [True] * 7


def test_a_caller_that_gives_up_leaves_its_work_to_its_twin(slow_server: InferenceProcess) -> None:
    metadata, request = key(), ask(*[RED] * 4).SerializeToString()
    with client(slow_server) as caller, client(slow_server) as other_caller:
        first = caller.raw.future(request, timeout=60, metadata=metadata)
        assert caller.health() == "SERVING"  # the call went before, over the same connection
        second = other_caller.raw.future(request, timeout=60, metadata=metadata)
        assert other_caller.health() == "SERVING"
        assert not first.done()
        first.cancel()  # type: ignore[no-untyped-call]
        answer = second.result()
        # It is the work of the first call, which has begun it.
        assert ("idempotent-replayed", "true") in second.trailing_metadata()
        assert send(other_caller, ask(*[RED] * 4), metadata) == (answer, True)


def test_a_deadline_that_passed_does_not_use_up_the_key(slow_server: InferenceProcess) -> None:
    metadata, request = key(), ask(RED)
    with client(slow_server) as created:
        with pytest.raises(grpc.RpcError) as caught:
            created.raw(request.SerializeToString(), timeout=0.05, metadata=metadata)
        assert from_rpc_error(caught.value).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert send(created, request, metadata)[1] is False
        assert send(created, request, metadata)[1] is True


def test_answers_in_a_file_outlive_the_process(tmp_path: Path, colours: Path) -> None:
    flags = [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--idempotency-database", str(tmp_path / "claims.sqlite")),
    ]
    metadata = key()
    with started(tmp_path, *flags) as server, client(server) as created:
        first = send(created, ask(RED), metadata)
        server.stop(signal.SIGKILL)
    with started(tmp_path, *flags) as server, client(server) as created:
        assert send(created, ask(RED), metadata) == (first[0], True)


def shared(tmp_path: Path, repository: Path, *more: str) -> list[str]:
    """Return the flags of a server on a shared database."""
    return [
        *("--model-repository", str(repository), "--workers", "1"),
        *("--idempotency-database", str(tmp_path / "claims.sqlite")),
        *("--idempotency-lease-seconds", str(LEASE_SECONDS), "--max-images", "32"),
        *more,
    ]


def test_a_server_killed_at_work_leaves_a_claim_that_runs_out(tmp_path: Path, slow: Path) -> None:
    flags = shared(tmp_path, slow)
    metadata, request = key(), ask(*[RED] * 10)  # enough work to be killed at it
    with started(tmp_path, *flags) as server, client(server) as created:
        call = created.raw.future(request.SerializeToString(), timeout=60, metadata=metadata)
        _wait_for_claim(tmp_path / "claims.sqlite")
        server.stop(signal.SIGKILL)
        assert call.exception() is not None
    with started(tmp_path, *flags) as server, client(server) as created:
        _, replayed = send(created, request, metadata)
        assert not replayed


def test_twins_at_two_servers_get_one_answer_even_when_it_takes_longer_than_a_lease(
    tmp_path: Path, slow: Path
) -> None:
    flags = shared(tmp_path, slow)
    metadata, pictures = key(), [RED] * 24
    request = ask(*pictures).SerializeToString()
    with (
        started(tmp_path, *flags) as caller,
        started(tmp_path, *flags) as other_caller,
        client(caller) as here,
        client(other_caller) as there,
    ):
        begun = time.monotonic()
        first = here.raw.future(request, timeout=60, metadata=metadata)
        _wait_for_claim(tmp_path / "claims.sqlite")
        other = failure(lambda: send(there, ask(BLUE), metadata))
        assert other.reason == "IDEMPOTENCY_KEY_REUSED"
        hurried = failure(lambda: there.raw(request, timeout=0.5, metadata=metadata))
        assert hurried.reason == "IDEMPOTENCY_TWIN_IN_FLIGHT"
        assert hurried.retry_after is not None
        answer, replayed = send(there, ask(*pictures), metadata)
        assert time.monotonic() - begun > LEASE_SECONDS, "it took no longer than a lease"
        assert replayed
        assert first.result() == answer
        assert ("idempotent-replayed", "true") not in (first.trailing_metadata() or ())


def test_another_caller_never_sees_a_record_nor_an_error_that_betrays_it(
    tmp_path: Path, colours: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.db")
    caller, other_caller = (
        (("authorization", f"Bearer {keys.create(n, devices=['*'], scopes=[Scope.INFER])[0]}"),)
        for n in ("one", "two")
    )
    flags = [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--api-keys-file", str(tmp_path / "keys.db")),
    ]
    metadata = key()
    with started(tmp_path, *flags) as server, client(server) as created:
        first, _ = send(created, ask(RED), metadata + caller)
        theirs, replayed = send(created, ask(RED), metadata + other_caller)
        assert not replayed
        assert theirs != first  # its timings are its own
        assert send(created, ask(RED), metadata + caller) == (first, True)
        assert send(created, ask(RED), metadata + other_caller) == (theirs, True)
        # Under a key of the first one that is new to the second, nothing tells that it is known.
        metadata = key()
        send(created, ask(RED), metadata + caller)
        assert send(created, ask(BLUE), metadata + other_caller)[1] is False


def test_answers_are_cleaned_up_while_nothing_else_happens(tmp_path: Path, colours: Path) -> None:
    flags = shared(tmp_path, colours, "--default-model", "colours")
    with started(tmp_path, *flags, "--idempotency-ttl-seconds", "0.5") as server:
        with client(server) as created:
            for _ in range(20):
                send(created, ask(RED), key())
        with closing(sqlite3.connect(tmp_path / "claims.sqlite")) as reader:
            count = "SELECT count(*) FROM claims"
            _until(lambda: reader.execute(count).fetchone() == (0,), "nothing was cleaned up")


def test_a_damaged_database_prevents_the_start(tmp_path: Path, colours: Path) -> None:
    flags = shared(tmp_path, colours, "--default-model", "colours")
    database = tmp_path / "claims.sqlite"
    with started(tmp_path, *flags) as server, client(server) as created:
        for _ in range(20):
            send(created, ask(RED), key())
        server.stop()
    whole = database.read_bytes()
    assert len(whole) > 3 * 4096
    database.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    server = InferenceProcess(tmp_path, *flags)
    assert server.process.wait(60) == 1
    assert "idempotency_database: " in server.log.read_text()
    assert "move it away" in server.log.read_text()
    server.stop()
    database.unlink()
    with started(tmp_path, *flags) as server, client(server) as created:
        assert send(created, ask(RED), key())[1] is False


def test_a_database_that_breaks_costs_calls_with_a_key_only_and_may_be_put_right(
    tmp_path: Path, colours: Path
) -> None:
    flags = shared(tmp_path, colours, "--default-model", "colours")
    with started(tmp_path, *flags) as server, client(server) as created:
        send(created, ask(RED), key())
        with closing(sqlite3.connect(tmp_path / "claims.sqlite")) as other:
            other.execute("DROP TABLE claims")
            other.execute("CREATE VIEW claims AS SELECT 1 AS key")
            error = failure(lambda: send(created, ask(RED), key()))
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.reason == "IDEMPOTENCY_STORE_UNAVAILABLE"
            assert error.retryable
            assert send(created, ask(RED), ())[0]
            other.execute("DROP VIEW claims")
        metadata = key()
        first, replayed = send(created, ask(RED), metadata)
        assert not replayed
        assert send(created, ask(RED), metadata) == (first, True)


def test_a_full_disk_costs_calls_with_a_key_only_and_is_over_when_there_is_room(
    tmp_path: Path, colours: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = ["--model-repository", str(colours), "--default-model", "colours"]
    flags += ["--idempotency-database", str(disk / "claims.sqlite")]
    with (
        small_disk(disk, 8) as is_mounted,
        started(tmp_path, *flags) as server,
        client(server) as created,
    ):
        send(created, ask(RED), key())
        with filled(disk, 0) if is_mounted else limited(server.process.pid, disk, 0):
            reasons = set()

            def is_refused() -> bool:
                try:
                    send(created, ask(RED), key())
                except grpc.RpcError as error:
                    reasons.add(from_rpc_error(error).reason)
                return bool(reasons)

            _until(is_refused, "the first fit into what the log has taken of the disk")
            assert reasons == {"IDEMPOTENCY_STORE_UNAVAILABLE"}
            assert send(created, ask(RED), ())[0]
        assert send(created, ask(RED), key())[1] is False


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, otherwise
        time.sleep(0.005)


def _wait_for_claim(database: Path) -> None:
    with closing(sqlite3.connect(database)) as reader:
        count = "SELECT count(*) FROM claims"
        _until(lambda: reader.execute(count).fetchone() != (0,), "nothing was claimed")
