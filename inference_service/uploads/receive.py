"""Takes uploads in, message by message, and gives images out by their references.

The event loop only looks at messages; what blocks happens in threads.
"""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from inference_service.domain import ImageContent
from inference_service.uploads import parts
from inference_service.uploads.errors import UploadStoreError, store_down
from inference_service.uploads.parts import Header, Part
from inference_service.uploads.reference import Claim, ReferenceSigner
from inference_service.uploads.store import Incoming, UploadStore
from servicekit.auth.caller import Caller
from servicekit.calls import in_flight
from vision import ImageError, ImageLimits, inspect_image

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 4
WRITTEN_AT_ONCE = 256 * 1024
"""Bytes that are collected before a thread writes them: smaller chunks would cost one each."""
_CLEAN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An upload that is stored."""

    reference: str
    claim: Claim


class Uploads:
    """The uploads of one process.

    Args:
        store: where they are; closed by `close`.
        signer: signs the references.
        limits: what an image may be.
        keep_seconds: how long a reference works.
        clock: Unix seconds, as every process on the store sees them.
    """

    def __init__(
        self,
        store: UploadStore,
        signer: ReferenceSigner,
        limits: ImageLimits,
        keep_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._signer = signer
        self._limits = limits
        self._keep = keep_seconds
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="upload")
        self._cleaning: asyncio.Task[None] | None = None

    async def receive(self, caller: Caller, messages: AsyncIterator[Part]) -> Uploaded:
        """Take in one upload; whatever goes wrong, nothing of it is left.

        Args:
            caller: who uploads; the reference will work for nobody else.
            messages: as they come.

        Raises:
            SightlineError: INVALID_ARGUMENT, as the functions of `parts` say and for an image that
                `inspect_image` refuses; RESOURCE_EXHAUSTED: `UPLOAD_QUOTA_EXCEEDED`,
                `UPLOAD_STORE_FULL`; UNAVAILABLE, `UPLOAD_STORE_UNAVAILABLE`.
        """
        header = parts.check_first(await anext(messages, None), self._limits.max_bytes)
        with _translated():
            incoming = await self._begin(caller, header)
            try:
                await self._take(incoming, header, messages)
                until = self._clock() + self._keep
                await self._do(self._store.finish, incoming, until)
            except Exception:
                await self._do(self._store.abort, incoming)  # a retry finds its room free again
                raise
            except BaseException:
                self._threads.submit(self._store.abort, incoming)  # after what is under way
                raise
        claim = Claim(header.sha256, header.size, round(until, 3))
        return Uploaded(self._signer.sign(claim, caller.identity), claim)

    def fetch(self, owner: str, reference: str) -> ImageContent:
        """Return the image of a reference. Blocks: not for the event loop's thread.

        Raises:
            SightlineError: NOT_FOUND: `REFERENCE_UNKNOWN`, `REFERENCE_EXPIRED`, `REFERENCE_GONE`;
                RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: there is no room for it in memory;
                UNAVAILABLE, `UPLOAD_STORE_UNAVAILABLE`.
        """
        claim = self._signer.read(reference, owner, self._clock())
        in_flight.hold(claim.size)
        with _translated():
            return ImageContent(self._store.read(claim), claim.sha256)

    def start(self) -> None:
        """Begin to clean up every minute; to be called on the event loop's thread."""
        self._cleaning = asyncio.get_running_loop().create_task(self._clean_for_ever())

    async def close(self) -> None:
        """Wait for the threads' last work and close the store."""
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.gather(self._cleaning, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown, wait=True)
        await asyncio.to_thread(self._store.close)

    async def _begin(self, caller: Caller, header: Header) -> Incoming:
        begun = self._threads.submit(
            self._store.begin,
            caller.identity,
            caller.name,
            header.sha256,
            header.size,
            self._clock(),
        )
        try:
            return await asyncio.wrap_future(begun)
        except asyncio.CancelledError:
            begun.add_done_callback(self._abandon)  # it may be under way
            raise

    def _abandon(self, begun: "Future[Incoming]") -> None:
        if not begun.cancelled() and begun.exception() is None:
            self._store.abort(begun.result())

    async def _take(
        self, incoming: Incoming, header: Header, messages: AsyncIterator[Part]
    ) -> None:
        """Write the chunks and check them, and what they make together."""
        received, waiting = 0, bytearray()
        async for message in messages:
            chunk = parts.check_next(message, header, received)
            received += len(chunk)
            waiting += chunk
            del message, chunk  # or they would be held while the next message is waited for
            if len(waiting) >= WRITTEN_AT_ONCE:
                await self._do(self._store.append, incoming, bytes(waiting))
                waiting.clear()
        await self._do(self._check, incoming, header, received, bytes(waiting))

    def _check(self, incoming: Incoming, header: Header, received: int, rest: bytes) -> None:
        """Write the rest and check the whole."""
        self._store.append(incoming, rest)
        parts.check_end(header, received, incoming.digest.digest())
        try:
            inspect_image(self._store.content(incoming), self._limits)
        except ImageError as error:
            raise parts.bad_content(error) from error

    async def _do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        submitted = self._threads.submit(functools.partial(work, *args, **kwargs))
        return await asyncio.wrap_future(submitted)

    async def _clean_for_ever(self) -> None:
        while True:
            await asyncio.sleep(min(_CLEAN_SECONDS, self._keep))
            try:
                now = self._clock()
                latest = now + self._keep + _CLEAN_SECONDS
                if expired := await self._do(self._store.clean, now, latest):
                    logger.info("%d uploads have expired", expired)
            except Exception:  # the next time it may work
                logger.exception("cannot clean up uploads")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except UploadStoreError as error:
        logger.exception("uploads do not work")
        raise store_down() from error
