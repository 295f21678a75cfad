"""The end of long calls whose credential has ended meanwhile."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from servicekit.errors import SightlineError

RECHECK_SECONDS = 5.0
logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def rechecked(
    check: Callable[[], Awaitable[object]], seconds: float = RECHECK_SECONDS
) -> AsyncIterator[None]:
    """Run the block until `check`, which is called every `seconds`, refuses the credential.

    The block is then cancelled. Any other failure of the check than UNAUTHENTICATED is ignored, and
    the check is repeated. A block that ends before the first check costs almost nothing.

    Raises:
        SightlineError: UNAUTHENTICATED, as the check raised it.
    """
    loop = asyncio.get_running_loop()
    limit = asyncio.timeout(None)
    refusals: list[SightlineError] = []
    watching: list[asyncio.Task[None]] = []

    async def watch() -> None:
        while not refusals:
            try:
                await check()
            except SightlineError as error:
                if error.code is grpc.StatusCode.UNAUTHENTICATED:
                    refusals.append(error)
                    limit.reschedule(loop.time())
            except Exception:
                # A watcher that ended here would leave a revoked credential to run on for good.
                logger.exception("unforeseen error while a credential was checked again")
            await asyncio.sleep(seconds)

    first = loop.call_later(seconds, lambda: watching.append(loop.create_task(watch())))
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not refusals or not limit.expired():  # the block's own
            raise
        raise refusals[0] from error
    finally:
        first.cancel()
        for task in watching:
            task.cancel()
