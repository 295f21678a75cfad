"""Receipt of uploads, message by message, and access to their images by reference.

The event loop only checks messages; threads do the blocking work, for callers in turn.
"""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from inference_service.domain import ImageContent
from inference_service.fair_threads import FairThreads
from inference_service.uploads import parts
from inference_service.uploads.errors import UploadStoreError, store_down
from inference_service.uploads.parts import Header, Part
from inference_service.uploads.reference import Claim, ReferenceSigner
from inference_service.uploads.store import Incoming, UploadStore
from servicekit.auth.caller import Caller
from servicekit.calls import memory_budget
from vision import ImageError, ImageLimits, inspect_image

logger = logging.getLogger(__name__)

T = TypeVar("T")
_InThread = Callable[[Callable[[], object]], Awaitable[object]]
_THREADS = 4
WRITTEN_AT_ONCE = 256 * 1024
"""Number of bytes that are collected for one write; a write per small chunk would be slow."""
_CLEAN_SECONDS = 60.0
_OWN_FLOW = ""  # of work for no caller


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A stored upload and its reference."""

    reference: str
    claim: Claim


class Uploads:
    """The uploads of one process.

    Args:
        store: stores the images; closed by `close`.
        signer: signs the references.
        limits: limits on an image.
        keep_seconds: how long a reference is valid.
        clock: Unix seconds, the same in every process on the store.
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
        self._threads = FairThreads(_THREADS, "upload")
        self._cleaning: asyncio.Task[None] | None = None

    async def receive(self, caller: Caller, messages: AsyncIterator[Part]) -> Uploaded:
        """Receive one upload; if it fails, nothing of it remains.

        Args:
            caller: the uploader, who alone can use the reference.
            messages: the messages of the upload.

        Raises:
            SightlineError: INVALID_ARGUMENT, see the functions of `parts`, and for an image that
                `inspect_image` refuses; RESOURCE_EXHAUSTED: `UPLOAD_QUOTA_EXCEEDED`,
                `UPLOAD_STORE_FULL`; UNAVAILABLE, `UPLOAD_STORE_UNAVAILABLE`.
        """
        header = parts.check_first(await anext(messages, None), self._limits.max_bytes)
        with _as_status():
            incoming = await self._begin(caller, header)
            in_thread = functools.partial(self._in_thread, caller.flow)
            try:
                await self._receive_chunks(in_thread, incoming, header, messages)
                until = self._clock() + self._keep
                await in_thread(lambda: self._store.finish(incoming, until))
            except Exception:
                # So that a retry finds its space released.
                await in_thread(lambda: self._store.abort(incoming))
                raise
            except BaseException:
                # After the work in progress.
                self._threads.submit(caller.flow, lambda: self._store.abort(incoming))
                raise
        claim = Claim(header.sha256, header.size, round(until, 3))
        return Uploaded(self._signer.sign(claim, caller.identity), claim)

    def fetch(self, owner: str, reference: str) -> ImageContent:
        """Return the image of a reference. Blocks: do not call it on the event loop.

        Raises:
            SightlineError: NOT_FOUND: `REFERENCE_UNKNOWN`, `REFERENCE_EXPIRED`, `REFERENCE_GONE`;
                RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: no memory for it;
                UNAVAILABLE, `UPLOAD_STORE_UNAVAILABLE`.
        """
        claim = self._signer.read(reference, owner, self._clock())
        memory_budget.reserve(claim.size)
        with _as_status():
            return ImageContent(self._store.read(claim), claim.sha256)

    def start(self) -> None:
        """Start the periodic clean-up; call on the event loop's thread."""
        self._cleaning = asyncio.get_running_loop().create_task(self._clean_periodically())

    async def close(self) -> None:
        """Wait for the threads and close the store."""
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.gather(self._cleaning, return_exceptions=True)
        await asyncio.to_thread(self._threads.close)
        await asyncio.to_thread(self._store.close)

    async def _begin(self, caller: Caller, header: Header) -> Incoming:
        begin = functools.partial(
            self._store.begin,
            caller.identity,
            caller.name,
            header.sha256,
            header.size,
            self._clock(),
        )
        starting = self._threads.submit(caller.flow, begin)
        try:
            return await asyncio.wrap_future(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._abandon)  # it may be in progress
            raise

    def _abandon(self, starting: "Future[Incoming]") -> None:
        if not starting.cancelled() and starting.exception() is None:
            self._store.abort(starting.result())

    async def _receive_chunks(
        self,
        in_thread: _InThread,
        incoming: Incoming,
        header: Header,
        messages: AsyncIterator[Part],
    ) -> None:
        """Check and write the chunks, and check the complete image."""
        received, buffer = 0, bytearray()
        async for message in messages:
            chunk = parts.check_next(message, header, received)
            received += len(chunk)
            buffer += chunk
            del message, chunk  # or their memory would be held while the next message is awaited
            if len(buffer) >= WRITTEN_AT_ONCE:
                await in_thread(functools.partial(self._store.append, incoming, bytes(buffer)))
                buffer.clear()
        await in_thread(lambda: self._check(incoming, header, received, bytes(buffer)))

    def _check(self, incoming: Incoming, header: Header, received: int, rest: bytes) -> None:
        """Write the rest and check the complete image."""
        self._store.append(incoming, rest)
        parts.check_end(header, received, incoming.digest.digest())
        try:
            inspect_image(self._store.content(incoming), self._limits)
        except ImageError as error:
            raise parts.bad_content(error) from error

    async def _in_thread(self, flow: str, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._threads.submit(flow, work))

    async def _clean_periodically(self) -> None:
        while True:
            await asyncio.sleep(min(_CLEAN_SECONDS, self._keep))
            try:
                now = self._clock()
                latest = now + self._keep + _CLEAN_SECONDS
                clean = functools.partial(self._store.clean, now, latest)
                if expired := await self._in_thread(_OWN_FLOW, clean):
                    logger.info("%d uploads have expired", expired)
            except Exception:  # the next clean-up may succeed
                logger.exception("cannot clean up uploads")


@contextmanager
def _as_status() -> Iterator[None]:
    try:
        yield
    except UploadStoreError as error:
        logger.exception("the upload store failed")
        raise store_down() from error
