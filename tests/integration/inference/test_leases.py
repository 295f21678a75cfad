"""Leases between real servers on one database: stopped processes and wrong clocks."""

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from servicekit.errors import from_rpc_error
from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    started,
)
from tests.integration.inference.test_once_per_key import (
    LEASE_SECONDS,
    RED,
    Metadata,
    _wait_for_claim,
    key,
    send,
    shared,
)

pytestmark = pytest.mark.alone

HOURS = 3600
PICTURES = [RED] * 16  # work enough to be stopped at


def stopped_at_work(
    server: InferenceProcess, calls: "list[grpc.CallFuture[Any]]", database: Path
) -> None:
    """Stop a server once it has claimed the key of these calls and works."""
    _wait_for_claim(database)
    os.kill(server.process.pid, signal.SIGSTOP)
    assert not any(call.done() for call in calls), "it was too quick to be stopped at work"


def told(call: "grpc.CallFuture[Any]") -> bytes | str:
    """Return a call's answer, or the code that it failed with."""
    error = call.exception()
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error).code.name
    return bytes(call.result())


@pytest.mark.parametrize("when", ["after", "during"])
def test_a_stopped_server_gives_its_callers_the_answer_of_the_other(
    tmp_path: Path, slow: Path, when: str
) -> None:
    flags = shared(tmp_path, slow)
    metadata, request = key(), ask(*PICTURES).SerializeToString()
    with (
        started(tmp_path, *flags) as first_server,
        started(tmp_path, *flags) as second_server,
        client(first_server) as here,
        client(second_server) as there,
    ):
        first = here.raw.future(request, timeout=120, metadata=metadata)
        _wait_for_claim(tmp_path / "claims.sqlite")
        twin = here.raw.future(request, timeout=120, metadata=metadata)
        stopped_at_work(first_server, [first, twin], tmp_path / "claims.sqlite")
        retry = there.raw.future(request, timeout=120, metadata=metadata)
        if when == "during":
            _wait_for_another_owner(tmp_path / "claims.sqlite")
        else:
            retry.result()
        os.kill(first_server.process.pid, signal.SIGCONT)
        assert told(first) == told(twin) == retry.result()
        assert ("idempotent-replayed", "true") not in (retry.trailing_metadata() or ())
        assert send(here, ask(*PICTURES), metadata) == (retry.result(), True)


@pytest.mark.parametrize("ahead", [2 * HOURS, -2 * HOURS])
def test_a_lease_of_a_wrong_clock_ends_like_any_other(
    tmp_path: Path, slow: Path, ahead: int
) -> None:
    flags = shared(tmp_path, slow)
    metadata, request = key(), ask(*PICTURES)
    with (
        started(tmp_path, *flags, clock_ahead=ahead) as wrong,
        started(tmp_path, *flags) as right,
        client(wrong) as here,
        client(right) as there,
    ):
        call = here.raw.future(request.SerializeToString(), timeout=60, metadata=metadata)
        _wait_for_claim(tmp_path / "claims.sqlite")
        _stays_claimed(there, request.SerializeToString(), metadata)
        wrong.stop(signal.SIGKILL)
        assert isinstance(call.exception(), grpc.RpcError)
        begun = time.monotonic()
        retry = there.raw.future(request.SerializeToString(), timeout=120, metadata=metadata)
        _wait_for_another_owner(tmp_path / "claims.sqlite")
        assert time.monotonic() - begun < 2 * LEASE_SECONDS + 1
        assert retry.result()


def test_kept_answers_outlive_a_start_with_the_clock_days_ahead(
    tmp_path: Path, colours: Path
) -> None:
    flags = shared(tmp_path, colours, "--default-model", "colours")
    metadata = key()
    with started(tmp_path, *flags) as server, client(server) as stub:
        first, _ = send(stub, ask(RED), metadata)
        server.stop()
    with started(tmp_path, *flags, clock_ahead=60 * 24 * HOURS) as server, client(server) as stub:
        assert send(stub, ask(RED), metadata) == (first, True)
        other = key()
        second, _ = send(stub, ask(RED), other)
        server.stop()
    with started(tmp_path, *flags) as server, client(server) as stub:
        assert send(stub, ask(RED), metadata) == (first, True)
        assert send(stub, ask(RED), other) == (second, True)


def _stays_claimed(to: InferenceStub, request: bytes, metadata: Metadata) -> None:
    """Check that a claim whose owner lives is not taken over for its owner's wrong clock."""
    with pytest.raises(grpc.RpcError) as caught:
        to.raw(request, timeout=0.3, metadata=metadata)
    assert from_rpc_error(caught.value).code is grpc.StatusCode.ABORTED


def _owner(database: Path) -> bytes:
    with closing(sqlite3.connect(database)) as reader:
        return bytes(reader.execute("SELECT owner FROM claims").fetchone()[0])


def _wait_for_another_owner(database: Path) -> None:
    before, until = _owner(database), time.monotonic() + 30
    while _owner(database) == before:
        assert time.monotonic() < until, "the claim was not taken over"
        time.sleep(0.01)
