"""Answers for pictures from the device or the cloud, inside one budget each.

Two shells, one for threads and one for asyncio, that differ only in how they wait. What to do is
decided in `edge.decide.core` and carried out in `edge.decide.question`.
"""

import asyncio
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from edge.cloud.client import InferenceClient
from edge.cloud.types import InferParameters, ModelHint
from edge.decide.answer import Answer, Mode, Policy
from edge.decide.core import AskCloud, Coordination, Fail, Finish, Observation, Woke
from edge.decide.device_worker import DeviceWorker
from edge.decide.question import Parties, Question
from edge.detect.base import Detector, Image
from edge.log.memory import ClosedError


class InferenceCoordinator:
    """Answers for pictures; from any number of threads and asyncio tasks at once.

    Make it after forking: it has a thread, and gRPC's connections do not survive a fork either.

    Args:
        detector: the model on the device; None: the device has none.
        client: the inference service; None: only in mode `device`. Not closed here.
        policy: who may answer, and how long it may take.
        model: which model of the service should answer; None: its default.
        parameters: how the service makes its answers; None: its model's own settings.

    Raises:
        ValueError: the mode needs a detector or a client that is not there.
    """

    def __init__(
        self,
        detector: Detector | None,
        client: InferenceClient | None,
        policy: Policy,
        *,
        model: ModelHint | None = None,
        parameters: InferParameters | None = None,
    ) -> None:
        if policy.mode is Mode.DEVICE and detector is None:
            raise ValueError("detector must be given in mode device")
        if policy.mode is not Mode.DEVICE and client is None:
            raise ValueError(f"client must be given in mode {policy.mode}")
        worker = DeviceWorker(detector) if detector and policy.mode is not Mode.CLOUD else None
        self._policy = policy
        self._parties = Parties(worker, client, model, parameters)
        self._closed = False

    def ask(self, image: Image, *, image_id: str = "", traceparent: str = "") -> Answer:
        """Returns the answer for one picture, waiting at most for the policy's timeout.

        Args:
            image: the picture, in any form. An array is not copied: leave it as it is.
            image_id: its name, for the service; empty: none.
            traceparent: W3C traceparent to pass on; empty: none.

        Raises:
            SightlineError: the cloud's error, with the device's as its cause; or that the device
                or the cloud was late; or that the picture is bad.
            ClosedError: the coordinator is closed.
            Exception: the device's error, as its model raised it. Every error has a note for each
                attempt: who, when, what became of it.
        """
        inbox: queue.SimpleQueue[Observation] = queue.SimpleQueue()
        with self._question(image, image_id, traceparent, inbox.put) as question:
            actions = question.core.begin()
            while (end := question.perform(actions)) is None:
                actions = question.observe(_next(inbox, question.patience()))
        return _settle(end)

    async def aask(self, image: Image, *, image_id: str = "", traceparent: str = "") -> Answer:
        """Returns the answer for one picture; see `ask`. Cancelling ends what is under way."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Observation] = asyncio.Queue()

        def report(happened: Observation) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(inbox.put_nowait, happened)

        with self._question(image, image_id, traceparent, report) as question:
            actions = question.core.begin()
            while True:
                if any(isinstance(action, AskCloud) for action in actions):
                    await asyncio.to_thread(question.prepare)  # reading and encoding take a while
                if (end := question.perform(actions)) is not None:
                    break
                actions = question.observe(await _anext(inbox, question.patience()))
        return _settle(end)

    def close(self) -> None:
        """Stops the device's worker; what is under way on it is waited for up to a second."""
        self._closed = True
        if self._parties.worker:
            self._parties.worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _question(
        self,
        image: Image,
        image_id: str,
        traceparent: str,
        report: Callable[[Observation], None],
    ) -> Iterator[Question]:
        if self._closed:
            raise ClosedError("the node is closed")
        has_device = self._parties.worker is not None
        core = Coordination(self._policy, has_device, time.monotonic())
        question = Question(core, self._parties, image, image_id, traceparent, report)
        try:
            yield question
        finally:
            question.drop()


def _next(inbox: "queue.SimpleQueue[Observation]", patience: float) -> Observation:
    try:
        return inbox.get(timeout=patience)
    except queue.Empty:
        return Woke()


async def _anext(inbox: "asyncio.Queue[Observation]", patience: float) -> Observation:
    try:
        async with asyncio.timeout(patience):
            return await inbox.get()
    except TimeoutError:
        return Woke()


def _settle(end: Finish | Fail) -> Answer:
    """Returns the answer, or raises the error with the story of its attempts."""
    if isinstance(end, Finish):
        return end.answer
    for attempt in end.attempts:
        end.error.add_note(str(attempt))
    if end.cause is not None:
        raise end.error from end.cause
    raise end.error
