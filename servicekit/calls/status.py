"""Guard that turns what a handler raises into the status that its caller gets."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from grpc_status import rpc_status

from servicekit.errors import SightlineError, out_of_memory, to_status, without_frames
from servicekit.telemetry.call_notes import note

T = TypeVar("T")
logger = logging.getLogger(__name__)


async def report_errors(
    method: str, context: grpc.aio.ServicerContext[Any, Any], proceed: Callable[[], Awaitable[T]]
) -> T:
    """Send a SightlineError with its details, and anything unforeseen as INTERNAL.

    A lack of memory is RESOURCE_EXHAUSTED: the same call may succeed later.

    The text of an unforeseen error stays in the log, under an id that the caller is given: it may
    hold what is none of the caller's business. An abort of the handler's own and a cancelled call
    pass as they are.
    """
    try:
        return await proceed()
    except grpc.aio.AbortError:
        raise
    except SightlineError as error:
        problem = error
    except MemoryError:
        logger.exception("no memory in %s", method)
        problem = out_of_memory()
    except Exception:
        error_id = uuid.uuid4().hex[:12]
        logger.exception("unforeseen error %s in %s", error_id, method)
        problem = SightlineError(
            grpc.StatusCode.INTERNAL,
            "INTERNAL",
            f"internal error; the server's log has it under {error_id}",
            metadata={"error_id": error_id},
        )
    # Only here, where what went wrong is no longer being handled: it would become the context of
    # the abort, which gRPC keeps with the call.
    return await _abort(context, without_frames(problem))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: SightlineError) -> NoReturn:
    note(reason=error.reason)
    status = rpc_status.to_status(to_status(error))
    # What the handler has set before stays: an abort replaces the trailing metadata.
    trailing = (*context.trailing_metadata(), *status.trailing_metadata)
    try:
        await context.abort(status.code, status.details, trailing)
    except grpc.aio.InternalError:
        # The call has ended meanwhile, mostly by its deadline: nobody is there to be told, and gRPC
        # would log it as an error of the server.
        raise asyncio.CancelledError from None
