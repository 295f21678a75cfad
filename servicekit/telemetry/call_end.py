"""The result of a call, for guards that count, log and trace it."""

import asyncio
from typing import Any
from urllib.parse import unquote

import grpc

from servicekit.auth.caller import known_caller

_Context = grpc.aio.ServicerContext[Any, Any]
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


def code_of(context: _Context, error: BaseException | None = None) -> str:
    """Return the name of the status code that the caller gets, such as `NOT_FOUND`.

    Args:
        context: of the call.
        error: the exception of the handler; None: it returned.
    """
    if isinstance(error, asyncio.CancelledError):
        return _why_cancelled(context)
    if error is not None and not isinstance(error, grpc.aio.AbortError):
        return grpc.StatusCode.UNKNOWN.name
    code: Any = context.code()  # gRPC gives the number where the handler set none or aborted
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _NAMES.get(code or 0, grpc.StatusCode.UNKNOWN.name)


def caller_class() -> str:
    """Return the kind of credential of this call's caller.

    `anonymous`, `api_key`, `jwt` or `mtls`; `none`: the caller is not authenticated.
    """
    caller = known_caller()
    return "none" if caller is None else caller.proof.value


def peer_of(context: _Context) -> str:
    """Return the address of a call's other end: host:port, [IPv6]:port or `unix:`."""
    peer = str(context.peer())
    scheme, _, address = peer.partition(":")
    return unquote(address) if scheme in {"ipv4", "ipv6"} else peer


def _why_cancelled(context: _Context) -> str:
    if context.time_remaining() == 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED.name
    return grpc.StatusCode.CANCELLED.name
