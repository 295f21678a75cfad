"""The pipeline of an `Infer` call, from its arrival to its response.

validate -> claim the idempotency key -> admit -> batch -> run -> record -> respond

Authentication and rate limits come before it, in `servicekit.calls.interceptors`.
"""

import asyncio
import contextvars
import functools
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
from inference_service.serving.workers import Workers, late
from inference_service.stage_report import note_key, note_model, note_origin, note_stages
from inference_service.telemetry import Telemetry
from inference_service.validate import RequestLimits
from servicekit.errors import SightlineError
from servicekit.resources import cpus

T = TypeVar("T")
_DEFAULT_PIXEL_BYTES = 1 << 29
_CHECK_THREADS = cpus() + 1  # one thread may wait for the disk
_FEW_IMAGES = 4  # checking them takes half a millisecond of the event loop
_MARGIN = 1024  # bytes of a response beside its results, and of the error of an image
INLINE_BYTES = 1024 * 1024
"""Size above which requests are checked in a thread, since the loop serves other calls."""


@dataclass(frozen=True, slots=True)
class CallMetadata:
    """Call metadata: caller, idempotency keys, arrival time, deadline, size and share."""

    caller: str
    """Identity of the caller, from `servicekit.auth.caller.Caller.identity`."""
    keys: Sequence[str]
    """Values of metadata `idempotency-key`."""
    arrived: float
    """Arrival on the pipeline's clock, s."""
    deadline: float
    """Deadline on the pipeline's clock, s."""
    size: int = 0
    """Size of the message in bytes. Computing it from the message would serialize it again."""
    share: Share = field(default_factory=Share)
    """Share of the workers and of the threads before them."""


class InferencePipeline:
    """The pipeline that answers `Infer` calls and runs the members of other calls.

    Args:
        limits: limits on one request.
        single_flight: executes calls with an idempotency key once.
        workers: runs the models.
        device: checks the device after failed runs.
        telemetry: metrics.
        clock: monotonic clock of the calls' times, s.
        fetch: returns the image of a caller's reference; blocks; raises like `validate.Resolve`.
        pixels: memory budget of decoded images.
        weights: weight by caller name; 1 for the others.
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
        """The served models; empty until they are loaded."""
        self.clock = clock
        self._calls: set[asyncio.Task[Any]] = set()
        self.limits = limits
        self._fetch = fetch
        self._single_flight = single_flight
        self._workers = workers
        self._device = device
        self.telemetry = telemetry
        self.weights = weights
        self.pixels = pixels or PixelBudget(_DEFAULT_PIXEL_BYTES)
        self._checks = FairThreads(_CHECK_THREADS, "check")
        self._turns = LoopTurns()

    @property
    def ready(self) -> bool:
        """True if the models are loaded and their device is not known to be dead."""
        return bool(self.models.all) and self._device.alive

    async def infer(
        self, call: CallMetadata, request: inference_service_pb2.InferRequest
    ) -> CallResponse:
        """Answer a request; the payload is a serialized `InferResponse`.

        Raises:
            SightlineError: the error of the step that refused it.
        """
        with self.in_flight():
            return await self._infer(call, request)

    async def enter(
        self, call: CallMetadata, images: int, model_name: str, model_version: str
    ) -> None:
        """Wait for the turn of a call with many images, and refuse it if the queue would.

        Checking its images is the most expensive part of a refused call for the event loop. A call
        with an idempotency key is not refused here, since its response may be stored.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED, see `Admission.offer`.
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
            SightlineError: UNAVAILABLE, `DEVICE_DEAD`; else see `Workers.run`.
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
        for member in ran:
            self._record(model, member)
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
        """Run a check of a large request in a thread, callers in turn, and return its result."""
        return await asyncio.wrap_future(self._checks.submit(call.share.flow, work))

    def close(self) -> None:
        """Wait for the threads that check requests, and end them."""
        self._checks.close()

    async def drain(self, seconds: float) -> None:
        """Wait for the calls in flight, at most `seconds`; the others then fail with UNAVAILABLE.

        gRPC would cancel them at the end of the grace period, and some callers would get CANCELLED
        instead of a retryable error.
        """
        if self._calls:
            _, unfinished = await asyncio.wait(self._calls, timeout=seconds)
            if unfinished:
                self._workers.give_up()

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count the current task among the calls that `drain` waits for."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call must be processed in a task")
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
        note_origin(request)
        key = keys.read_key(call.keys, caller=call.caller, method="Infer")
        checked = self.clock()

        # Steps that depend on the server's state come after the claim: a stored response is
        # replayed even if its model is no longer loaded, or the device has died.
        async def answer() -> bytes:
            model = self.models.find(checked_request.model_name, checked_request.model_version)
            results, timing = await self._run_model(checked_request, model, call, checked)
            self.telemetry.total(model.name, timing.total)
            return answers.response(results, model, timing).SerializeToString()

        if key is None:
            return CallResponse(await answer())
        bound_to = keys.fingerprint(checked_request)
        return await self.answer_with_key(
            call, key, bound_to, answer, keep=not _may_change(checked_request)
        )

    async def _validate(
        self, call: CallMetadata, request: inference_service_pb2.InferRequest
    ) -> CheckedRequest:
        reads = any(image.HasField("reference") for image in request.images)
        if not reads and call.size <= INLINE_BYTES:
            return validate.check(request, self.limits)
        resolve = functools.partial(self._fetch, call.caller)
        check = contextvars.copy_context().run  # uploads count as memory of the call
        return await self.check(call, lambda: check(validate.check, request, self.limits, resolve))

    async def _run_model(
        self, checked_request: CheckedRequest, model: Model, call: CallMetadata, checked: float
    ) -> tuple[list[inference_pb2.ImageResult], Timing]:
        """Run the model on the good images, and return the results of all images."""
        reserve = self.pixels.for_call(call.share.flow)

        def require_time() -> None:
            if self.clock() >= call.deadline:
                raise late()

        work = [
            answers.ResultWork(
                ImageWork(
                    model,
                    image,
                    checked_request.parameters,
                    reserve,
                    require_time,
                    self.limits.max_response_bytes,
                )
            )
            for image in checked_request.images
            if isinstance(image, CheckedImage)
        ]
        ran = await self.run(call, model, work) if work else []
        results = _merge(checked_request, ran, self.limits.max_response_bytes)
        return results, self._timing(ran, call, checked)

    def _timing(
        self,
        ran: Sequence[MemberResult[inference_pb2.ImageResult]],
        call: CallMetadata,
        checked: float,
    ) -> Timing:
        return Timing(
            validate=checked - call.arrived,
            queue=max(member.waited for member in ran),
            decode=sum(member.decode for member in ran),
            infer=sum(member.infer for member in ran),
            post=sum(member.post for member in ran),
            total=self.clock() - call.arrived,
        )

    def _record(self, model: Model, ran: MemberResult[Any]) -> None:
        stages = [("queue", ran.waited), ("decode", ran.decode)]
        if not isinstance(ran.result, SightlineError):
            stages += [("infer", ran.infer), ("post", ran.post)]
        for stage, seconds in stages:
            self.telemetry.stage(model.name, stage, seconds)


def _may_change(checked_request: CheckedRequest) -> bool:
    """Return True if an image was refused because of the server's state, e.g. a lost upload."""
    return any(
        isinstance(image, RefusedImage) and image.error.code is not grpc.StatusCode.INVALID_ARGUMENT
        for image in checked_request.images
    )


def _merge(
    checked_request: CheckedRequest,
    ran: Sequence[MemberResult[inference_pb2.ImageResult]],
    limit: int,
) -> list[inference_pb2.ImageResult]:
    """Return one result per image of the request, in its order.

    Results that do not fit into a response of `limit` bytes become errors.
    """
    left = limit - _MARGIN * (1 + len(checked_request.images))
    outcomes = iter(ran)
    errors: list[SightlineError | None] = []
    results = []
    for image in checked_request.images:
        outcome = image.error if isinstance(image, RefusedImage) else next(outcomes).result
        if not isinstance(outcome, SightlineError):
            left -= (size := outcome.ByteSize())
            if left < 0:
                left += size
                outcome = validate.result_too_large(image.index, limit)
        if isinstance(outcome, SightlineError):
            errors.append(outcome)
            results.append(answers.image_error(image.image_id, outcome))
        else:
            errors.append(None)
            results.append(outcome)
    validate.refuse_if_all_bad(errors)
    return results
