"""The guard that turns a handler's error into the status for its caller."""

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
    """Send a SightlineError with its details, and any other error as INTERNAL.

    A lack of memory is RESOURCE_EXHAUSTED: the same call may succeed later.

    The text of an unexpected error is only logged, under an id that the caller gets: it may contain
    data that the caller must not see. An abort by the handler and a cancelled call pass unchanged.
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
    # Outside the `except` block: inside, the error would become the context of the abort, which
    # gRPC keeps with the call.
    return await _abort(context, without_frames(problem))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: SightlineError) -> NoReturn:
    note(reason=error.reason)
    status = rpc_status.to_status(to_status(error))
    # An abort replaces the trailing metadata, so that of the handler is sent again.
    trailing = (*context.trailing_metadata(), *status.trailing_metadata)
    try:
        await context.abort(status.code, status.details, trailing)
    except grpc.aio.InternalError:
        # The call has ended meanwhile, mostly by its deadline. gRPC would log this as an error of
        # the server.
        raise asyncio.CancelledError from None
