"""One call from its arrival to its answer, step by step.

validate -> claim the idempotency key -> admit -> batch -> run -> record -> answer

Who is calling and how often it may is settled before, by `servicekit.interceptors`.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sightline.inference.v1 import inference_pb2, inference_service_pb2

from inference_service import answers, idempotency, validate
from inference_service.batch import Ran, Wanted, Workers
from inference_service.device import DeviceCheck
from inference_service.domain import Picture, Question, Refused, Seen, Timing
from inference_service.models.engine import Model, look
from inference_service.models.repository import Models
from inference_service.once import Once, Reply
from inference_service.validate import Limits
from servicekit.errors import SightlineError

_INLINE_BYTES = 1024 * 1024  # larger requests are checked in a thread: the loop has other calls


@dataclass(frozen=True, slots=True)
class Call:
    """What a call brings beside its message."""

    caller: str
    """Who calls, as `servicekit.auth.caller.Caller.identity` tells callers apart."""
    keys: Sequence[str]
    """Every value of metadata `idempotency-key`."""
    arrived: float
    """Seconds on the pipeline's clock."""
    deadline: float
    """Seconds on the pipeline's clock."""


_Looked = tuple[inference_pb2.ImageResult, Seen]


class Pipeline:
    """The steps of a call, in their order.

    Args:
        limits: what one request may ask for.
        once: answers calls with a key once.
        workers: run the models.
        device: told of runs that failed.
        clock: seconds; calls come with times on it.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        once: Once,
        workers: Workers,
        device: DeviceCheck,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = Models([], "")
        """What is served; empty until the models are loaded."""
        self.clock = clock
        self._calls: set[asyncio.Task[Any]] = set()
        self._limits = limits
        self._once = once
        self._workers = workers
        self._device = device

    @property
    def ready(self) -> bool:
        """Whether the models are loaded and their device is not known to be dead."""
        return bool(self.models.all) and self._device.alive

    async def infer(self, call: Call, request: inference_service_pb2.InferRequest) -> Reply:
        """Answers a request: the payload is a serialized `InferResponse`.

        Raises:
            SightlineError: a step refused it; each step's documentation says how.
        """
        with self._in_flight():
            return await self._infer(call, request)

    async def drain(self, seconds: float) -> None:
        """Waits for the calls in flight, at most so long; what is left then fails: UNAVAILABLE.

        Were that left to gRPC, which cancels at the end of the grace, some callers would get
        CANCELLED, which does not tell them to try elsewhere.
        """
        if self._calls:
            _, left = await asyncio.wait(self._calls, timeout=seconds)
            if left:
                self._workers.give_up()

    @contextmanager
    def _in_flight(self) -> Iterator[None]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call must be answered in a task")
        self._calls.add(task)
        try:
            yield
        finally:
            self._calls.discard(task)

    async def _infer(self, call: Call, request: inference_service_pb2.InferRequest) -> Reply:
        question = await self._validate(request)
        model = self.models.find(question.model_name, question.model_version)
        key = idempotency.read_key(call.keys, caller=call.caller, method="Infer")
        self._device.require()
        checked = self.clock()

        async def answer() -> bytes:
            results, timing = await self._look(question, model, call, checked)
            return answers.response(results, model, timing).SerializeToString()

        if key is None:
            return Reply(await answer())
        left = call.deadline - checked
        return await self._once.answer(key, idempotency.fingerprint(question), left, answer)

    async def _validate(self, request: inference_service_pb2.InferRequest) -> Question:
        if request.ByteSize() <= _INLINE_BYTES:
            return validate.check(request, self._limits)
        return await asyncio.to_thread(validate.check, request, self._limits)

    async def _look(
        self, question: Question, model: Model, call: Call, checked: float
    ) -> tuple[list[inference_pb2.ImageResult], Timing]:
        """Admits the good pictures, runs the model on them, and puts all results together."""
        work = [
            self._work(picture, question, model)
            for picture in question.pictures
            if isinstance(picture, Picture)
        ]
        try:
            ran = await self._workers.run(work, model.estimate, call.deadline)
        except SightlineError as error:
            if error.reason == "MODEL_RUN_FAILED":
                self._device.suspect(model)
            raise
        results = _merge(question, ran)
        return results, self._timing(ran, call, checked)

    def _work(
        self, picture: Picture, question: Question, model: Model
    ) -> Callable[[Wanted], _Looked]:
        def work(wanted: Wanted) -> _Looked:
            seen = look(model, picture, question.parameters, self._limits.image, wanted)
            return answers.picture_result(picture.image_id, seen, model.detector.names), seen

        return work

    def _timing(self, ran: Sequence[Ran[_Looked]], call: Call, checked: float) -> Timing:
        seen = [one.result[1] for one in ran if not isinstance(one.result, SightlineError)]
        return Timing(
            validate=checked - call.arrived,
            queue=max(one.waited for one in ran),
            decode=sum(one.decode for one in seen),
            infer=sum(one.infer for one in seen),
            post=sum(one.post for one in seen),
            total=self.clock() - call.arrived,
        )


def _merge(question: Question, ran: Sequence[Ran[_Looked]]) -> list[inference_pb2.ImageResult]:
    """Returns one result per picture of the request, in its order."""
    outcomes = iter(ran)
    errors: list[SightlineError | None] = []
    results = []
    for picture in question.pictures:
        outcome = picture.error if isinstance(picture, Refused) else next(outcomes).result
        if isinstance(outcome, SightlineError):
            errors.append(outcome)
            results.append(answers.picture_error(picture.image_id, outcome))
        else:
            errors.append(None)
            results.append(outcome[0])
    validate.refuse_if_all_bad(errors)
    return results
