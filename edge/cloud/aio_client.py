"""The client of the inference service for asyncio.

It wraps the threaded client, so that both behave in the same way. gRPC's own asyncio client would
also replace the status of an upload that the service ended early with INTERNAL (grpcio 1.85).
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

from edge.channel import Endpoint
from edge.cloud.client import HARD_TIMEOUT, InferenceClient
from edge.cloud.types import (
    UPLOAD_ABOVE_BYTES,
    InferAnswer,
    InferParameters,
    ModelHint,
    ModelInfo,
)
from edge.detect.base import Image
from edge.detect.images import ArrayFormat
from edge.detect.limits import DeviceImageLimits


class AsyncInferenceClient:
    """A client of the inference service for asyncio, with the arguments of `InferenceClient`.

    Example:
        >>> import asyncio
        >>> from sightline import AsyncInferenceClient, SightlineError
        >>> async def main() -> None:
        ...     async with AsyncInferenceClient("127.0.0.1:1", timeout=5.0) as client:
        ...         try:
        ...             answer = await client.infer(["photo.jpg"])
        ...         except SightlineError as error:  # no service listens on this port
        ...             print(error.category, error.retryable)
        >>> asyncio.run(main())
        network True
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        *,
        timeout: float = HARD_TIMEOUT,
        array_format: ArrayFormat = "jpeg",
        upload_above_bytes: int | None = UPLOAD_ABOVE_BYTES,
        downscale: bool = False,
        limits: DeviceImageLimits | None = None,
    ) -> None:
        self._client = InferenceClient(
            endpoint,
            timeout=timeout,
            array_format=array_format,
            upload_above_bytes=upload_above_bytes,
            downscale=downscale,
            limits=limits,
        )

    async def infer(
        self,
        images: Sequence[Image],
        *,
        image_ids: Sequence[str] = (),
        model: ModelHint | None = None,
        parameters: InferParameters | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the server must know the deadline, too
        idempotency_key: str | None = None,
        traceparent: str = "",
        context: Mapping[str, str] | None = None,
    ) -> InferAnswer:
        """Return the service's answer for one or more images; see `InferenceClient.infer`."""
        call = await asyncio.to_thread(  # files are read and pixels encoded here
            self._client.prepare,
            images,
            image_ids=image_ids,
            model=model,
            parameters=parameters,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
            context=context,
        )
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        pending = self._client.send(call, timeout=timeout)

        def set_done() -> None:
            with suppress(RuntimeError):  # the loop is closed, so no task waits any more
                loop.call_soon_threadsafe(done.set)

        pending.add_done_callback(set_done)
        try:
            await done.wait()
        finally:
            pending.cancel()  # has an effect only if this task was cancelled
        return pending.result()

    async def list_models(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> tuple[ModelInfo, ...]:
        """Return the models that the service has loaded; see `InferenceClient.list_models`."""
        return await asyncio.to_thread(self._client.list_models, timeout=timeout)

    async def close(self) -> None:
        """Close the connection. Calls in progress end as CANCELLED."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
