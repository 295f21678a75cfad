"""The one gRPC interceptor of a server, and the guards that it puts around each call.

A guard is a coroutine function around one call: it awaits `proceed()` once and returns what that
gave. It sees the call begin and how it ends, for all four kinds of RPC alike, and never its
requests; those are counted between the guards and the handler. Guards are put around a handler
once, not once a call, so a call costs a dictionary look-up and the guards themselves.
"""

import contextlib
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from servicekit.auth.caller import current_caller
from servicekit.auth.guard import Access, Authenticator, RequireCaller
from servicekit.deadline import DefaultDeadline
from servicekit.errors import SightlineError
from servicekit.gate import Gate
from servicekit.limits import CallerLimits
from servicekit.metrics import CallMetrics
from servicekit.server_settings import ServerSettings
from servicekit.status import report_errors
from servicekit.tracing import join_trace

Context = grpc.aio.ServicerContext[Any, Any]
Guard = Callable[[str, Context, Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Takes the full method, `/package.Service/Method`, the call's context, and `proceed`."""
_RpcMethod: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for type checkers only
_Message = Any
"""A request, an iterator of requests, a response or None: passed on and never looked at."""
_Handler = Callable[[_Message, Context], Awaitable[_Message]]


OnMessage = Callable[[str, int], None]
"""Told of every message that comes: its method and its size, bytes; may raise to end the call."""


def server_interceptor(
    services: Sequence[str],
    access: Access,
    settings: ServerSettings,
    gate: Gate,
    registry: CollectorRegistry,
) -> "GuardInterceptor":
    """Returns the interceptor with every guard that a Sightline server has, outermost first.

    Args:
        services: full names; calls of others (health, reflection) are left alone.
        access: which scope each method needs; those open to everyone are not limited either.
        settings: the default deadline, who may call, and how much.
        gate: whether calls are let in.
        registry: where calls are counted.

    Raises:
        SettingsError: a file of credentials cannot be used.
    """
    guards: list[Guard] = [
        CallMetrics(registry),
        join_trace,
        report_errors,
        gate,
        DefaultDeadline(settings.default_deadline_seconds),
        RequireCaller(Authenticator.from_settings(settings), access),
    ]
    limits = CallerLimits(
        settings.rate_limit_per_second,
        settings.rate_limit_burst,
        settings.rate_limit_bytes_per_second,
    )

    def charge(method: str, size: int) -> None:
        if method not in access or access[method] is not None:
            limits.charge(current_caller(), size, time.monotonic())

    return GuardInterceptor(services, guards, None if limits.off else charge)


class GuardInterceptor(
    grpc.aio.ServerInterceptor  # type: ignore[type-arg] # generic for type checkers only
):
    """Puts guards around every call of the given services."""

    def __init__(
        self,
        services: Sequence[str],
        guards: Sequence[Guard],
        on_message: OnMessage | None = None,
    ) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._guards = tuple(guards)
        self._on_message = on_message
        self._guarded: dict[str, tuple[_RpcMethod, _RpcMethod]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_RpcMethod]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _RpcMethod:
        """Returns the handler with the guards around it; None stays None (UNIMPLEMENTED)."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(self._prefixes):
            return handler
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = (handler, _guard_handler(handler, method, self._guards, self._on_message))
            self._guarded[method] = known
        return known[1]


def _guard_handler(
    handler: _RpcMethod, method: str, guards: Sequence[Guard], on_message: OnMessage | None
) -> _RpcMethod:
    function, make = _function_of(handler)
    guarded = _parsing(handler, _as_coroutine(function, method))
    if on_message is not None:
        guarded = _counting(handler, functools.partial(on_message, method), guarded)
    for guard in reversed(guards):
        guarded = _around(guard, method, guarded)
    rebuilt: _RpcMethod = make(
        guarded,
        request_deserializer=None,
        response_serializer=handler.response_serializer,
    )
    return rebuilt


def _function_of(handler: _RpcMethod) -> tuple[Any, Callable[..., Any]]:
    """Returns the handler's function and the maker of handlers of its kind."""
    if handler.request_streaming and handler.response_streaming:
        return handler.stream_stream, grpc.stream_stream_rpc_method_handler
    if handler.request_streaming:
        return handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return handler.unary_unary, grpc.unary_unary_rpc_method_handler


def _as_coroutine(function: Callable[..., Any], method: str) -> _Handler:
    """Returns the function as `await f(request or iterator, context)`, whichever kind it was.

    An async generator becomes a coroutine that writes: a deadline that strikes during a write
    is then raised inside the guards, where it is turned into a status, and not past them.
    """
    if inspect.iscoroutinefunction(function):
        return function
    if not inspect.isasyncgenfunction(function):
        raise TypeError(f"{method}: the handler must be async, or it would hold up every call")

    async def write_all(request: _Message, context: Context) -> None:
        async with contextlib.aclosing(function(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all


def _parsing(handler: _RpcMethod, function: _Handler) -> _Handler:
    """Returns the function with its requests parsed inside the guards.

    gRPC would parse them before, and answer UNKNOWN for what is not the expected message.
    """
    deserialize = handler.request_deserializer
    if deserialize is None:
        return function

    def parse(data: bytes) -> _Message:
        try:
            return deserialize(data)
        except DecodeError as error:
            raise SightlineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MALFORMED_MESSAGE",
                "the request is not a message of the type that this method takes",
            ) from error

    async def parse_one(request: bytes, context: Context) -> _Message:
        return await function(parse(request), context)

    async def parse_all(requests: AsyncIterator[bytes], context: Context) -> _Message:
        return await function((parse(data) async for data in requests), context)

    return parse_all if handler.request_streaming else parse_one


def _counting(
    handler: _RpcMethod, on_message: Callable[[int], None], function: _Handler
) -> _Handler:
    """Returns the function with each request counted before the function gets it."""

    async def count_one(request: bytes, context: Context) -> _Message:
        on_message(len(request))
        return await function(request, context)

    async def counted(requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for request in requests:
            on_message(len(request))
            yield request

    async def count_all(requests: AsyncIterator[bytes], context: Context) -> _Message:
        return await function(counted(requests), context)

    return count_all if handler.request_streaming else count_one


def _around(guard: Guard, method: str, inner: _Handler) -> _Handler:
    async def guarded(request: _Message, context: Context) -> _Message:
        return await guard(method, context, functools.partial(inner, request, context))

    return guarded
