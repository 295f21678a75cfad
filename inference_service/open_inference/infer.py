"""The steps of a `ModelInfer` call, corresponding to `pipeline` for `Infer`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

import grpc
from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.idempotency import keys
from inference_service.models.engine import Model
from inference_service.open_inference import request as requests
from inference_service.open_inference import work
from inference_service.open_inference.request import CheckedInfer
from inference_service.open_inference.statistics import Statistics
from inference_service.open_inference.tensors import Tensor, datatype, stack
from inference_service.pipeline import INLINE_BYTES, CallMetadata, InferencePipeline
from inference_service.serving.work import MemberResult
from inference_service.stage_report import note_model
from servicekit.errors import SightlineError
from servicekit.parsing import parse

T = TypeVar("T")


class Inference:
    """Handler of `ModelInfer` requests.

    Args:
        pipeline: finds models, handles idempotency keys, and admits and runs members.
        statistics: counts responses.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        pipeline: InferencePipeline,
        statistics: Statistics,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._pipeline = pipeline
        self._statistics = statistics
        self._wall_clock = wall_clock

    async def infer(
        self, call: CallMetadata, request: oip.ModelInferRequest
    ) -> tuple[oip.ModelInferResponse, bool]:
        """Return the response, and True if an earlier call with the same key produced it.

        Raises:
            SightlineError: NOT_FOUND: unknown model; INVALID_ARGUMENT with the field; else see
                `InferencePipeline.run` and, with a key, `SingleFlight.answer`.
        """
        requests.check_model("model_", request.model_name, request.model_version)
        model = self._pipeline.models.find(request.model_name, request.model_version)
        note_model(model)
        try:
            with self._pipeline.in_flight():
                return await self._infer(call, request, model)
        except SightlineError:
            self._statistics.failed(
                model, self._pipeline.clock() - call.arrived, self._wall_clock()
            )
            raise

    async def _infer(
        self, call: CallMetadata, request: oip.ModelInferRequest, model: Model
    ) -> tuple[oip.ModelInferResponse, bool]:
        await self._pipeline.enter(call, _images(request), model.name, model.version)
        key = keys.read_key(call.keys, caller=call.caller, method="ModelInfer")
        large = call.size > INLINE_BYTES
        checked = await self._check(
            call, lambda: requests.read(request, model, self._pipeline.limits), large=large
        )
        deadline = min(call.deadline, call.arrived + checked.timeout)
        own = replace(call, deadline=deadline)
        async with self._until(deadline, call):
            if key is None:
                return await self._answer(own, request, model, checked), False
            bound_to = await self._check(call, lambda: requests.fingerprint(request), large=large)

            async def answer() -> bytes:
                return (await self._answer(own, request, model, checked)).SerializeToString()

            response = await self._pipeline.answer_with_key(own, key, bound_to, answer)
            return parse(oip.ModelInferResponse.FromString, response.payload), response.replayed

    @asynccontextmanager
    async def _until(self, deadline: float, call: CallMetadata) -> AsyncIterator[None]:
        """Cancel the block at a deadline that is earlier than the call's, which gRPC enforces."""
        if deadline >= call.deadline:
            yield
            return
        limit = asyncio.timeout(deadline - self._pipeline.clock())
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise SightlineError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "DEADLINE_EXCEEDED",
                f"parameters.timeout, {deadline - call.arrived:g} s, expired before the model"
                " answered",
            ) from error

    async def _check(self, call: CallMetadata, check: Callable[[], T], *, large: bool) -> T:
        """Run a check and return its result; that of a large request runs in a thread."""
        return await self._pipeline.check(call, check) if large else check()

    async def _answer(
        self,
        call: CallMetadata,
        request: oip.ModelInferRequest,
        model: Model,
        checked: CheckedInfer,
    ) -> oip.ModelInferResponse:
        members = work.members(checked, model, self._pipeline.pixels.for_call(call.share.flow))
        ran = await self._pipeline.run(call, model, members)
        outputs = [model.network.session.outputs[index] for index in checked.outputs]
        tensors = stack([output.name for output in outputs], _results(ran))
        seconds = self._pipeline.clock() - call.arrived
        self._pipeline.telemetry.total(model.name, seconds)
        self._statistics.answered(model, ran, len(checked.inputs), seconds, self._wall_clock())
        return oip.ModelInferResponse(
            model_name=model.name,
            model_version=model.version,
            id=request.id,
            outputs=[
                oip.ModelInferResponse.InferOutputTensor(
                    name=output.name, datatype=datatype(output.dtype), shape=tensor.shape
                )
                for output, tensor in zip(outputs, tensors, strict=True)
            ],
            raw_output_contents=[tensor.data for tensor in tensors],
        )


def _images(request: oip.ModelInferRequest) -> int:
    """Return the number of encoded images that a request declares; 0 for rows of tensors."""
    shapes = [tensor.shape for tensor in request.inputs if tensor.datatype == "BYTES"]
    return max((shape[0] for shape in shapes if shape), default=0)


def _results(ran: Sequence[MemberResult[list[Tensor]]]) -> list[list[Tensor]]:
    """Return the tensors of every member; raise the error of the first failed one."""
    results = []
    for member in ran:
        if isinstance(member.result, SightlineError):
            raise member.result
        results.append(member.result)
    return results
