"""Errors of a handler as its caller sees them, over a real channel."""

import asyncio
import contextlib
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from servicekit.calls.interceptors import GuardInterceptor
from servicekit.calls.status import report_errors
from servicekit.errors import FieldViolation, QuotaViolation, SightlineError, from_rpc_error
from tests.unit.servicekit.echo import (
    ECHO,
    MALFORMED,
    Act,
    Context,
    call,
    call_sync,
    serving,
    until,
)
from tests.unit.servicekit.test_errors import TABLE

FULL: dict[str, Any] = {
    "violations": [FieldViolation("images[0]", "must be a picture")],
    "quotas": [QuotaViolation("caller:gate-1", "60 calls a minute")],
    "retry_after": 1.25,
    "metadata": {"expected_sequence": "7"},
}


@contextlib.asynccontextmanager
async def guarded(act: Act) -> AsyncIterator[str]:
    async with serving(act, [GuardInterceptor([ECHO], [report_errors])]) as address:
        yield address


def raising(error: BaseException) -> Act:
    async def act(_context: Context) -> None:
        raise error

    return act


async def failure(act: Act, kind: str = "UnaryUnary") -> grpc.aio.AioRpcError:
    async with guarded(act) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind)
    return caught.value


async def failure_sync(act: Act, kind: str) -> grpc.RpcError:
    def fail(address: str) -> grpc.RpcError:
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            call_sync(channel, kind)
        return caught.value

    async with guarded(act) as address:
        return await asyncio.to_thread(fail, address)


@pytest.mark.parametrize("code", TABLE, ids=lambda code: code.name)
async def test_every_row_reaches_both_clients(code: grpc.StatusCode, kind: str) -> None:
    sent = SightlineError(code, "SOME_REASON", "what went wrong", **FULL)
    for error in (await failure(raising(sent), kind), await failure_sync(raising(sent), kind)):
        assert error.code() is code
        assert error.details() == "what went wrong"
        assert vars(from_rpc_error(error)) == vars(sent)


async def test_the_details_are_googles() -> None:
    sent = SightlineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "slow down", **FULL)
    status = rpc_status.from_call(cast("grpc.Call", await failure(raising(sent))))
    assert status is not None
    info, bad, quota, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.QuotaFailure(),
        error_details_pb2.RetryInfo(),
    )
    assert [d.Unpack(m) for d, m in zip(status.details, (info, bad, quota, retry), strict=True)]
    assert (info.reason, info.domain) == ("RATE_LIMITED", "sightline.dev")
    assert dict(info.metadata) == {
        "category": "server",
        "retryable": "true",
        "expected_sequence": "7",
    }
    assert bad.field_violations[0].field == "images[0]"
    assert quota.violations[0].subject == "caller:gate-1"
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.25


async def test_a_huge_error_keeps_its_code() -> None:
    violations = [FieldViolation(f"predictions[{i}]", "ü" * 600) for i in range(500)]
    sent = SightlineError(
        grpc.StatusCode.INVALID_ARGUMENT, "R", "ü" * 100_000, violations=violations
    )
    for _ in range(20):  # between its soft and its hard limit gRPC refuses at random
        error = from_rpc_error(await failure(raising(sent)))
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "R")
    assert error.violations


async def test_an_unforeseen_error_is_logged_and_not_told(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "servicekit.calls.status"):
        error = from_rpc_error(await failure(raising(RuntimeError("password=hunter2")), kind))
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "hunter2" not in str(vars(error))
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "hunter2" in str(record.exc_info[1])
    assert error.metadata["error_id"] in record.getMessage()
    assert error.metadata["error_id"] in error.message


async def test_a_handlers_own_abort_passes(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def act(context: Context) -> None:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "mine")

    error = await failure(act, kind)
    assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "mine")
    assert rpc_status.from_call(cast("grpc.Call", error)) is None
    # gRPC's poller may still complain about the closed event loop of an earlier test.
    assert not [record for record in caplog.records if record.name != "asyncio"]


async def test_trailing_metadata_of_the_handler_stays() -> None:
    async def act(context: Context) -> None:
        context.set_trailing_metadata((("idempotent-replayed", "true"),))
        raise SightlineError(grpc.StatusCode.NOT_FOUND, "NO_MODEL", "no such model")

    error = await failure(act)
    assert ("idempotent-replayed", "true") in list(cast("Any", error.trailing_metadata()))
    assert from_rpc_error(error).reason == "NO_MODEL"


async def test_a_cancelled_call_is_no_error_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    running, ended = asyncio.Event(), asyncio.Event()

    async def act(_context: Context) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with guarded(act) as address, grpc.aio.insecure_channel(address) as channel:
        ongoing = asyncio.ensure_future(call(channel, "UnaryUnary"))
        await running.wait()
        ongoing.cancel()
        async with asyncio.timeout(5):
            await ended.wait()
    assert not caplog.records


async def test_a_foreign_servers_error_has_its_code_as_reason() -> None:
    async def act(context: Context) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "proxy says no")

    async with serving(act, []) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "UnaryUnary")
    error = from_rpc_error(caught.value)
    assert (error.reason, error.message) == ("UNAVAILABLE", "proxy says no")


@pytest.mark.parametrize("details", [b"\xff\xff not a status", b"\x08\x03\x12\x03abc"])
async def test_details_that_lie_are_ignored(details: bytes) -> None:
    async def act(context: Context) -> None:
        trailers = (("grpc-status-details-bin", details),)
        await context.abort(grpc.StatusCode.ABORTED, "the truth", trailers)

    error = from_rpc_error(await failure(act))
    assert (error.code, error.message) == (grpc.StatusCode.ABORTED, "the truth")


async def test_what_is_no_message_is_refused_by_name(kind: str) -> None:
    async def nothing(_context: Context) -> None:
        """A handler that has nothing against its request."""

    async with guarded(nothing) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind, (MALFORMED,))
        assert await call(channel, kind, (b"a",))
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


class Request:
    """Something large that a handler has in hand."""


@pytest.mark.parametrize(
    "make", [lambda: SightlineError(grpc.StatusCode.ABORTED, "R", "m"), ValueError]
)
async def test_a_call_that_failed_keeps_nothing_in_memory(
    make: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "servicekit.calls.status")  # pytest keeps what is logged
    handled: list[weakref.ref[Request]] = []

    async def act(_context: Context) -> None:
        request = Request()
        handled.append(weakref.ref(request))
        try:
            dict[Request, None]()[request]
        except KeyError as cause:
            raise make() from cause

    async with (
        serving(act, [GuardInterceptor([ECHO], [report_errors])]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        gc.collect()
        gc.disable()  # a circle would be found by the collector only, much later
        try:
            with pytest.raises(grpc.aio.AioRpcError):
                await call(channel, "UnaryUnary")
            await until(lambda: handled[0]() is None)
        finally:
            gc.enable()


async def test_a_call_that_has_ended_before_its_error_is_sent_is_cancelled() -> None:
    class Ended:
        """gRPC's own context, as it is once the peer is gone."""

        def trailing_metadata(self) -> tuple[()]:
            return ()

        async def abort(self, *_given: object) -> None:
            raise grpc.aio.InternalError("Failed grpc_call_start_batch")

    async def refuse() -> None:
        raise SightlineError(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no such model")

    with pytest.raises(asyncio.CancelledError):
        await report_errors("/test.v1.Echo/UnaryUnary", cast("Any", Ended()), refuse)
