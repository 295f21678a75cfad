"""The worker threads: takes admitted pictures in order and runs them, one picture a run for now.

The decisions are `Admission`'s; this only acts on them. Everything but the work itself happens on
the event loop's thread.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from inference_service.admission import Admission, Estimate, Ticket
from servicekit.errors import Category, SightlineError

T = TypeVar("T")

Wanted = Callable[[], bool]
"""Asks, from a worker thread, whether anybody still waits for the result."""


class UnwantedError(Exception):
    """Raised by work that found out that nobody waits for its result."""


@dataclass(frozen=True, slots=True)
class Ran(Generic[T]):
    """What came of one piece of work."""

    result: T | SightlineError
    """What it returned, or what was wrong with its own input."""
    waited: float
    """Seconds in the queue."""


@dataclass(slots=True, eq=False)
class _Job:
    ticket: Ticket
    work: Callable[[Wanted], object]
    estimate: Estimate
    future: "asyncio.Future[Any]"
    admitted: float
    started: float = 0.0


class Workers:
    """A small pool of threads behind an `Admission`.

    Args:
        admission: decides what runs; its `workers` is the number of threads.
        clock: seconds; deadlines are on it.
    """

    def __init__(self, admission: Admission, clock: Callable[[], float] = time.monotonic) -> None:
        self._admission = admission
        self._clock = clock
        self._jobs: dict[Ticket, _Job] = {}
        self._given_up = False
        self._pool = ThreadPoolExecutor(admission.workers, thread_name_prefix="model")

    async def run(
        self, work: Sequence[Callable[[Wanted], T]], estimate: Estimate, deadline: float
    ) -> list[Ran[T]]:
        """Runs a request's pieces of work and returns their results in order.

        A piece whose own input is bad fails alone. If one fails otherwise, or the caller is
        cancelled, those that wait are not started.

        Args:
            work: blocking functions, each run in a thread.
            estimate: of the model that they are for; learns from them.
            deadline: seconds on the clock.

        Raises:
            SightlineError: as `Admission.offer`; DEADLINE_EXCEEDED if a piece could not be in time;
                UNAVAILABLE, `SHUTTING_DOWN`, if it could not be done before the server's end.
            Exception: what the first piece that failed, through no fault of its input, has raised.
        """
        if self._given_up:
            raise _shutting_down()
        now = self._clock()
        tickets = [Ticket(deadline) for _ in work]
        self._admission.offer(tickets, estimate, now)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Ran[T]]] = [loop.create_future() for _ in work]
        for ticket, piece, future in zip(tickets, work, futures, strict=True):
            self._jobs[ticket] = _Job(ticket, piece, estimate, future, now)
        self._start_what_fits()
        try:
            return await asyncio.gather(*futures)
        finally:
            self._withdraw(tickets)

    def give_up(self) -> None:
        """Fails what is not done, and whatever is brought from now on, with UNAVAILABLE."""
        self._given_up = True
        for job in self._jobs.values():
            _fail(job.future, _shutting_down())

    def close(self) -> None:
        """Waits for what is running and ends the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _withdraw(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket in self._jobs:
                self._jobs[ticket].future.cancel()
            if self._admission.withdraw(ticket):
                del self._jobs[ticket]

    def _start_what_fits(self) -> None:
        while True:
            ticket, late = self._admission.take(self._clock())
            for each in late:
                _fail(self._jobs.pop(each).future, _late())
            if ticket is None:
                return
            self._start(self._jobs[ticket])

    def _start(self, job: _Job) -> None:
        job.started = self._clock()

        def wanted() -> bool:
            return not job.future.done() and self._clock() < job.ticket.deadline

        running = asyncio.get_running_loop().run_in_executor(self._pool, job.work, wanted)
        running.add_done_callback(lambda done: self._finish(job, done))

    def _finish(self, job: _Job, done: "asyncio.Future[object]") -> None:
        del self._jobs[job.ticket]
        self._admission.done(job.ticket)
        error = done.exception()
        waited = job.started - job.admitted
        if error is None:
            now = self._clock()
            job.estimate.learn(now - job.started, now)
            _succeed(job.future, Ran(done.result(), waited))
        elif isinstance(error, SightlineError) and error.category is Category.VALIDATION:
            _succeed(job.future, Ran(error, waited))
        else:
            _fail(job.future, _late() if isinstance(error, UnwantedError) else error)
        self._start_what_fits()


def _succeed(future: "asyncio.Future[Any]", ran: Ran[object]) -> None:
    if not future.done():
        future.set_result(ran)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _late() -> SightlineError:
    return SightlineError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "the deadline passed before the model could answer",
    )


def _shutting_down() -> SightlineError:
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the server is shutting down: try another"
    )
