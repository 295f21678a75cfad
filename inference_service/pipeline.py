"""One call from its arrival to its answer, step by step.

validate -> claim the idempotency key -> admit -> batch -> run -> record -> answer

Who is calling and how often it may is settled before, by `servicekit.calls.interceptors`.
"""

import asyncio
import contextvars
import functools
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import grpc
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from inference_service import answers, validate
from inference_service.device import DeviceCheck
from inference_service.domain import (
    CheckedImage,
    CheckedRequest,
    ImageContent,
    ImagePrediction,
    RefusedImage,
    Timing,
)
from inference_service.fair_threads import FairThreads
from inference_service.idempotency import keys
from inference_service.idempotency.single_flight import CallResponse, SingleFlight
from inference_service.models.engine import ImageWork, Model
from inference_service.models.repository import Models
from inference_service.serving import admission
from inference_service.serving.admission import Share
from inference_service.serving.loop_turns import LoopTurns
from inference_service.serving.pixel_budget import PixelBudget
from inference_service.serving.work import MemberResult, MemberWork
from inference_service.serving.workers import Workers
from inference_service.stage_report import note_key, note_model, note_stages
from inference_service.telemetry import Telemetry
from inference_service.validate import RequestLimits
from servicekit.errors import SightlineError

T = TypeVar("T")
_MOST_PIXEL_BYTES = 1 << 29
_CHECK_THREADS = (os.cpu_count() or 1) + 1  # one may wait for the disk
_FEW_IMAGES = 4  # of a request that goes on at once: its check takes half a millisecond
INLINE_BYTES = 1024 * 1024
"""Larger requests are checked in a thread: the loop has other calls."""


@dataclass(frozen=True, slots=True)
class CallMetadata:
    """What a call brings beside its message."""

    caller: str
    """Who calls, as `servicekit.auth.caller.Caller.identity` tells callers apart."""
    keys: Sequence[str]
    """Every value of metadata `idempotency-key`."""
    arrived: float
    """Seconds on the pipeline's clock."""
    deadline: float
    """Seconds on the pipeline's clock."""
    size: int = 0
    """Of the message, bytes. The message itself would be serialized again to tell it."""
    share: Share = field(default_factory=Share)
    """Of the workers and of what comes before them."""


class InferencePipeline:
    """The steps of a call, in their order.

    Args:
        limits: what one request may ask for.
        single_flight: answers calls with a key once.
        workers: run the models.
        device: told of runs that failed.
        telemetry: counts and times.
        clock: seconds; calls come with times on it.
        fetch: returns the image of a caller's reference; blocks; raises as `validate.Resolve`.
        pixels: bounds the images that are decoded at a time.
        weights: by name of the caller, where it is not 1: how much it gets beside others.
    """

    def __init__(
        self,
        *,
        limits: RequestLimits,
        single_flight: SingleFlight,
        workers: Workers,
        device: DeviceCheck,
        telemetry: Telemetry,
        clock: Callable[[], float] = time.monotonic,
        fetch: Callable[[str, str], ImageContent] = lambda _, reference: validate.resolve_none(
            reference
        ),
        pixels: PixelBudget | None = None,
        weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.models = Models([], "")
        """What is served; empty until the models are loaded."""
        self.clock = clock
        self._calls: set[asyncio.Task[Any]] = set()
        self.limits = limits
        self._fetch = fetch
        self._single_flight = single_flight
        self._workers = workers
        self._device = device
        self.telemetry = telemetry
        self.weights = weights
        self.pixels = pixels or PixelBudget(_MOST_PIXEL_BYTES)
        self._checks = FairThreads(_CHECK_THREADS, "check")
        self._turns = LoopTurns()

    @property
    def ready(self) -> bool:
        """Whether the models are loaded and their device is not known to be dead."""
        return bool(self.models.all) and self._device.alive

    async def infer(
        self, call: CallMetadata, request: inference_service_pb2.InferRequest
    ) -> CallResponse:
        """Answer a request: the payload is a serialized `InferResponse`.

        Raises:
            SightlineError: a step refused it; each step's documentation says how.
        """
        with self.in_flight():
            return await self._infer(call, request)

    async def enter(
        self, call: CallMetadata, images: int, model_name: str, model_version: str
    ) -> None:
        """Let a call with many images wait for its turn, and refuse it if the queue would.

        Checking its images costs the event loop more than anything else that a refused call does.
        A call with an idempotency key is not refused here: it may have an answer already.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED, as `Admission.offer`.
        """
        if images <= _FEW_IMAGES:
            return
        await self._turns.wait(call.share.flow)
        if call.keys or images > self.limits.max_images:
            return
        try:
            model = self.models.find(model_name, model_version)
        except SightlineError:
            return  # errors of the images are reported first
        note_model(model)
        with self._counting_shed():
            self._workers.check(images, model, call.deadline, call.share)

    async def run(
        self, call: CallMetadata, model: Model, work: Sequence[MemberWork[T]]
    ) -> list[MemberResult[T]]:
        """Admit a call's members and run them on a model.

        Raises:
            SightlineError: UNAVAILABLE, `DEVICE_DEAD`; else as `Workers.run`.
        """
        self._device.require()
        note_model(model)
        admitted = self.clock()
        try:
            with self._counting_shed():
                ran = await self._workers.run(work, model, call.deadline, call.share)
        except SightlineError as error:
            if error.reason == "MODEL_RUN_FAILED":
                self._device.suspect(model, self.models.all)
            raise
        for each in ran:
            self._note(model, each)
        note_stages(ran, admitted)
        return ran

    async def answer_with_key(
        self,
        call: CallMetadata,
        key: bytes,
        fingerprint: bytes,
        answer: Callable[[], Awaitable[bytes]],
        *,
        keep: bool = True,
    ) -> CallResponse:
        """Answer a call with an idempotency key; see `SingleFlight.answer`."""
        left = call.deadline - self.clock()
        reply = await self._single_flight.answer(
            key, fingerprint, left, answer, keep=keep, flow=call.share.flow
        )
        note_key(call.keys[0], replayed=reply.replayed)
        return reply

    async def check(self, call: CallMetadata, work: Callable[[], T]) -> T:
        """Return what a check of a large request returns: beside the loop, callers in turn."""
        return await asyncio.wrap_future(self._checks.submit(call.share.flow, work))

    def close(self) -> None:
        """End the threads that check requests; waits for what they are at."""
        self._checks.close()

    async def drain(self, seconds: float) -> None:
        """Wait for the calls in flight, at most so long; what is left then fails: UNAVAILABLE.

        Were that left to gRPC, which cancels at the end of the grace, some callers would get
        CANCELLED, which does not tell them to try elsewhere.
        """
        if self._calls:
            _, left = await asyncio.wait(self._calls, timeout=seconds)
            if left:
                self._workers.give_up()

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count the current task among the calls that `drain` waits for."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call must be answered in a task")
        self._calls.add(task)
        try:
            yield
        finally:
            self._calls.discard(task)

    @contextmanager
    def _counting_shed(self) -> Iterator[None]:
        try:
            yield
        except SightlineError as error:
            if error.reason in admission.REASONS:
                self.telemetry.shed(error.reason)
            raise

    async def _infer(
        self, call: CallMetadata, request: inference_service_pb2.InferRequest
    ) -> CallResponse:
        await self.enter(call, len(request.images), request.model.name, request.model.version)
        checked_request = await self._validate(call, request)
        key = keys.read_key(call.keys, caller=call.caller, method="Infer")
        checked = self.clock()

        # What hangs on the server's state comes after the claim: an answer that is kept is replayed
        # even when its model is no longer loaded, or the device has died.
        async def answer() -> bytes:
            model = self.models.find(checked_request.model_name, checked_request.model_version)
            results, timing = await self._look(checked_request, model, call, checked)
            self.telemetry.total(model.name, timing.total)
            return answers.response(results, model, timing).SerializeToString()

        if key is None:
            return CallResponse(await answer())
        bound_to = keys.fingerprint(checked_request)
        return await self.answer_with_key(
            call, key, bound_to, answer, keep=not _may_pass(checked_request)
        )

    async def _validate(
        self, call: CallMetadata, request: inference_service_pb2.InferRequest
    ) -> CheckedRequest:
        reads = any(image.HasField("reference") for image in request.images)
        if not reads and call.size <= INLINE_BYTES:
            return validate.check(request, self.limits)
        resolve = functools.partial(self._fetch, call.caller)
        check = contextvars.copy_context().run  # references are counted as what the call holds
        return await self.check(call, lambda: check(validate.check, request, self.limits, resolve))

    async def _look(
        self, checked_request: CheckedRequest, model: Model, call: CallMetadata, checked: float
    ) -> tuple[list[inference_pb2.ImageResult], Timing]:
        """Run the model on the good images, and put all results together."""
        reserve = self.pixels.for_call(call.share.flow)
        work = [
            ImageWork(model, image, checked_request.parameters, reserve)
            for image in checked_request.images
            if isinstance(image, CheckedImage)
        ]
        ran = await self.run(call, model, work) if work else []
        return _merge(checked_request, model, ran), self._timing(ran, call, checked)

    def _timing(
        self, ran: Sequence[MemberResult[ImagePrediction]], call: CallMetadata, checked: float
    ) -> Timing:
        return Timing(
            validate=checked - call.arrived,
            queue=max(each.waited for each in ran),
            decode=sum(each.decode for each in ran),
            infer=sum(each.infer for each in ran),
            post=sum(each.post for each in ran),
            total=self.clock() - call.arrived,
        )

    def _note(self, model: Model, ran: MemberResult[Any]) -> None:
        stages = [("queue", ran.waited), ("decode", ran.decode)]
        if not isinstance(ran.result, SightlineError):
            stages += [("infer", ran.infer), ("post", ran.post)]
        for stage, seconds in stages:
            self.telemetry.stage(model.name, stage, seconds)


def _may_pass(checked_request: CheckedRequest) -> bool:
    """Whether an image was refused for what the server has now, such as an upload that is gone."""
    return any(
        isinstance(image, RefusedImage) and image.error.code is not grpc.StatusCode.INVALID_ARGUMENT
        for image in checked_request.images
    )


def _merge(
    checked_request: CheckedRequest, model: Model, ran: Sequence[MemberResult[ImagePrediction]]
) -> list[inference_pb2.ImageResult]:
    """Return one result per image of the request, in its order."""
    outcomes = iter(ran)
    errors: list[SightlineError | None] = []
    results = []
    for image in checked_request.images:
        outcome = image.error if isinstance(image, RefusedImage) else next(outcomes).result
        if isinstance(outcome, SightlineError):
            errors.append(outcome)
            results.append(answers.image_error(image.image_id, outcome))
        else:
            errors.append(None)
            results.append(answers.image_result(image.image_id, outcome, model.network.names))
    validate.refuse_if_all_bad(errors)
    return results
