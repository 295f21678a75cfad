"""The gRPC interceptor of a server, and the guards that it puts around each call.

A guard is a coroutine function around one call: it awaits `proceed()` once and returns its result.
It sees the beginning and the end of a call, in the same way for all four kinds of RPC, and never
its requests; those are counted between the guards and the handler. A handler is wrapped once, not
per call, so a call costs a dictionary look-up and the guards themselves.

Where the memory of requests is limited, every message is read inside the guards, once memory for it
is reserved. For gRPC, a method with one request is then registered as one with a stream: otherwise
gRPC would read the request before any guard runs, and hold large messages of any sender.
"""

import contextlib
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from servicekit.auth.caller import current_caller, known_caller
from servicekit.auth.guard import Access, Authenticator, RequireCaller
from servicekit.calls.deadline import DefaultDeadline
from servicekit.calls.gate import Gate
from servicekit.calls.limits import CallerLimits
from servicekit.calls.memory_budget import MemoryBudget, Reservation
from servicekit.calls.status import report_errors
from servicekit.calls.tarpit import Tarpit
from servicekit.errors import SightlineError
from servicekit.parsing import parse
from servicekit.quotas import Quota, parse_method_limits
from servicekit.server_settings import ServerSettings
from servicekit.settings import SettingsError
from servicekit.telemetry import call_notes
from servicekit.telemetry.access_log import log_access
from servicekit.telemetry.metrics import CallMetrics
from servicekit.telemetry.tracing import join_trace

Context = grpc.aio.ServicerContext[Any, Any]
Guard = Callable[[str, Context, Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Arguments: the full method (`/package.Service/Method`), the call's context, and `proceed`."""
_RpcMethod: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for type checkers only
_Message = Any
"""A request, an iterator of requests, a response or None; its content is not used here."""
_Handler = Callable[[_Message, Context], Awaitable[_Message]]
_EOF = grpc.aio.EOF  # type: ignore[attr-defined] # the published types leave it out


OnMessage = Callable[[str, int, bool], None]
"""Callback for each received message, with its method, its size in bytes, and True for the first
message of a call. It may raise an error to end the call."""
BudgetFor = Callable[[str], MemoryBudget | None]
"""Returns the memory budget of a full method; None: it has none."""


def server_interceptor(
    services: Sequence[str],
    access: Access,
    settings: ServerSettings,
    gate: Gate,
    registry: CollectorRegistry,
    budgets: BudgetFor,
    trace: Guard = join_trace,
    tarpit: Tarpit | None = None,
    unlimited: Collection[str] = (),
) -> "GuardInterceptor":
    """Return the interceptor with every guard that a Sightline server has, outermost first.

    Args:
        services: full names; calls of others (health, reflection) only get memory and the tarpit.
        access: required scope of each method; methods that are open to everyone are not limited.
        settings: the default deadline, credentials and rate limits.
        gate: admits calls.
        registry: gets the metrics of calls.
        budgets: the memory budgets of methods.
        trace: guard that joins the caller's trace; `Spans` where spans are exported.
        tarpit: guard that delays the answers of useless calls; None: a new one.
        unlimited: methods without a default deadline.

    Raises:
        SettingsError: a file of credentials cannot be used, or `rate_limits` names a method that
            is not served or not limited.
    """
    limits = CallerLimits(
        settings.rate_limit_per_second,
        settings.rate_limit_burst,
        settings.rate_limit_bytes_per_second,
        _method_limits(settings.rate_limits, access),
    )
    open_to_all = frozenset(method for method, scope in access.items() if scope is None)

    async def charge_call(
        method: str, _context: Context, proceed: Callable[[], Awaitable[_Message]]
    ) -> _Message:
        if method not in open_to_all:
            limits.charge_call(current_caller(), time.monotonic(), method)
        return await proceed()

    def charge_message(method: str, size: int, first: bool) -> None:
        call_notes.add("request_bytes", size)
        if not limits.off and method not in open_to_all:
            now = time.monotonic()
            limits.charge_message(current_caller(), size, now, method, first=first)

    tarpit = tarpit or Tarpit(time.monotonic, open_to_all)
    guards: list[Guard] = [
        CallMetrics(registry),
        trace,
        *([log_access] if settings.access_log else ()),
        report_errors,
        tarpit,
        gate,
        DefaultDeadline(settings.default_deadline_seconds, unlimited),
        RequireCaller(Authenticator.from_settings(settings), access),
        *(() if limits.off else [charge_call]),
    ]
    return GuardInterceptor(
        services,
        guards,
        charge_message,
        budgets,
        [report_errors, tarpit.of_all],
        tarpit.unknown_method(),
    )


def _method_limits(words: Sequence[str], access: Access) -> list[Quota]:
    """Return the quotas of all methods with a name in `rate_limits`."""
    quotas = []
    for name, quota in parse_method_limits(words).items():
        methods = [m for m, scope in access.items() if m.endswith(f"/{name}") and scope is not None]
        if not methods:
            known = sorted({m.rpartition("/")[2] for m, scope in access.items() if scope})
            raise SettingsError(
                f"rate_limits: must name methods out of {', '.join(known)} (got {name!r})"
            )
        quotas += [replace(quota, method=method) for method in methods]
    return quotas


class GuardInterceptor(
    grpc.aio.ServerInterceptor  # type: ignore[type-arg] # generic for type checkers only
):
    """Puts guards around calls of the given services, and reserves memory for all calls."""

    def __init__(
        self,
        services: Sequence[str],
        guards: Sequence[Guard],
        on_message: OnMessage | None = None,
        budgets: BudgetFor | None = None,
        of_others: Sequence[Guard] = (),
        unknown: "_RpcMethod | None" = None,
    ) -> None:
        """Put the guards `of_others` around calls of other services.

        `unknown` handles methods that do not exist.
        """
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._guards = tuple(guards)
        self._on_message = on_message
        self._budgets = budgets
        self._of_others = tuple(of_others)
        self._unknown = unknown
        self._guarded: dict[str, tuple[_RpcMethod, _RpcMethod]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_RpcMethod]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _RpcMethod:
        """Return the handler with the guards around it; None: UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return self._unknown
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = (handler, self._guard(handler, method))
            self._guarded[method] = known
        return known[1]

    def _guard(self, handler: _RpcMethod, method: str) -> _RpcMethod:
        budget = None if self._budgets is None else self._budgets(method)
        if method.startswith(self._prefixes):
            return _guard_handler(handler, method, self._guards, self._on_message, budget)
        if budget is None and not self._of_others:
            return handler
        return _guard_handler(handler, method, self._of_others or [report_errors], None, budget)


def _guard_handler(
    handler: _RpcMethod,
    method: str,
    guards: Sequence[Guard],
    on_message: OnMessage | None,
    budget: MemoryBudget | None,
) -> _RpcMethod:
    function, make = _function_of(handler)
    guarded = _parsing(handler, _serializing(handler, _as_coroutine(function, method)))
    if on_message is not None:
        guarded = _counting(handler, functools.partial(on_message, method), guarded)
    if budget is not None:
        receiving = _receiving_all if handler.request_streaming else _receiving
        guarded, make = receiving(budget, guarded), _STREAMING.get(make, make)
    for guard in reversed(guards):
        guarded = _around(guard, method, guarded)
    rebuilt: _RpcMethod = make(
        guarded,
        request_deserializer=None,
        response_serializer=handler.response_serializer if handler.response_streaming else None,
    )
    return rebuilt


def _function_of(handler: _RpcMethod) -> tuple[Any, Callable[..., Any]]:
    """Return the handler's function and the maker of handlers of its kind."""
    if handler.request_streaming and handler.response_streaming:
        return handler.stream_stream, grpc.stream_stream_rpc_method_handler
    if handler.request_streaming:
        return handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return handler.unary_unary, grpc.unary_unary_rpc_method_handler


_STREAMING: dict[Callable[..., Any], Callable[..., Any]] = {
    grpc.unary_unary_rpc_method_handler: grpc.stream_unary_rpc_method_handler,
    grpc.unary_stream_rpc_method_handler: grpc.stream_stream_rpc_method_handler,
}
"""Makers of handlers of one request, and of those that read it themselves."""


def _as_coroutine(function: Callable[..., Any], method: str) -> _Handler:
    """Return the function as `await f(request or iterator, context)`, whichever kind it was.

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
    """Return the function with its requests parsed inside the guards.

    gRPC would parse them before, and answer UNKNOWN for what is not the expected message.
    """
    deserialize = handler.request_deserializer
    if deserialize is None:
        return function

    def read(data: bytes) -> _Message:
        try:
            return parse(deserialize, data)
        except DecodeError as error:
            raise SightlineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MALFORMED_MESSAGE",
                "the request is not a message of the type that this method takes",
            ) from error

    async def parse_one(request: bytes, context: Context) -> _Message:
        message = read(request)
        del request  # or the call would keep its images in memory twice
        return await function(message, context)

    async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[_Message]:
        async for data in requests:
            message = read(data)
            del data  # the handler's reference is the only one while it waits for the next
            yield message
            del message

    async def parse_all(requests: AsyncIterator[bytes], context: Context) -> _Message:
        return await function(parsed(requests), context)

    return parse_all if handler.request_streaming else parse_one


def _serializing(handler: _RpcMethod, function: _Handler) -> _Handler:
    """Return the function with its one response serialized, and measured, inside the guards.

    Responses of a stream are serialized by gRPC, as they are written.
    """
    if handler.response_streaming:
        return function
    serialize = handler.response_serializer

    async def serialized(request: _Message, context: Context) -> _Message:
        response = await function(request, context)
        if response is None:  # the handler has set a code, and gRPC sends no message
            return None
        data = response if serialize is None else serialize(response)
        call_notes.add("response_bytes", len(data))
        return data

    return serialized


def _counting(
    handler: _RpcMethod, on_message: Callable[[int, bool], None], function: _Handler
) -> _Handler:
    """Return the function with each request counted before the function gets it."""

    async def count_one(request: bytes, context: Context) -> _Message:
        on_message(len(request), True)
        handling = function(request, context)
        del request  # so that `parse_one` holds the only reference
        return await handling

    async def counted(requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        first = True
        async for request in requests:
            on_message(len(request), first)
            first = False
            yield request
            del request

    async def count_all(requests: AsyncIterator[bytes], context: Context) -> _Message:
        return await function(counted(requests), context)

    return count_all if handler.request_streaming else count_one


def _receiving(budget: MemoryBudget, function: _Handler) -> _Handler:
    """Return the function with its request read once memory is reserved."""

    async def receive(_requests: AsyncIterator[bytes], context: Context) -> _Message:
        async with budget.reservation(_flow(context)) as reservation:
            request = await reservation.receive(context.read, _size)
            if request is _EOF:
                raise SightlineError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "REQUEST_MISSING",
                    "the request did not arrive, or is larger than max_message_bytes",
                )
            handling = function(request, context)
            del request  # so that `parse_one` holds the only reference
            return await handling

    return receive


def _receiving_all(budget: MemoryBudget, function: _Handler) -> _Handler:
    """Return the function with each request read once memory is reserved."""

    async def received(reservation: Reservation, context: Context) -> AsyncIterator[bytes]:
        while True:
            request = await reservation.receive(context.read, _size, reads_on=True)
            if request is _EOF:
                return
            yield request
            del request  # or it would be held while the next one is waited for

    async def receive_all(_requests: AsyncIterator[bytes], context: Context) -> _Message:
        async with budget.reservation(_flow(context)) as reservation:
            return await function(received(reservation, context), context)

    return receive_all


def _flow(context: Context) -> str:
    """Return the key by which this call shares memory: its caller's, or its connection."""
    caller = known_caller()
    return str(context.peer()) if caller is None else caller.flow


def _size(request: _Message) -> int:
    return 0 if request is _EOF else len(request)


def _around(guard: Guard, method: str, inner: _Handler) -> _Handler:
    async def guarded(request: _Message, context: Context) -> _Message:
        return await guard(method, context, functools.partial(inner, request, context))

    return guarded
