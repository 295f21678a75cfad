"""The worker threads, which run admitted members in the order that `Admission` decides.

A member that runs alone is processed by one thread from its image to its response, and the thread
then takes the next member itself: a worker that waited for the event loop would be idle meanwhile.
The inputs of a batch are prepared in separate threads during the run of the previous batch. Members
whose callers have cancelled meanwhile are removed, and the others are run in one batch. Results are
delivered on the event loop's thread.
"""

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from inference_service.fair_threads import FairThreads
from inference_service.serving.admission import Admission, Dispatch, Share, Ticket, displaced
from inference_service.serving.work import Listener, MemberResult, MemberWork, Outputs, Runner
from servicekit.errors import Category, SightlineError, without_frames
from servicekit.resources import cpus

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Member:
    ticket: Ticket
    work: MemberWork[Any]
    runner: Runner
    future: "asyncio.Future[MemberResult[Any]]"
    request: "Sequence[asyncio.Future[MemberResult[Any]]]"
    """Futures of all members of its request."""
    started: float = 0.0
    decode: float = 0.0

    def wanted(self, now: float) -> bool:
        """Return True if a caller is still waiting for the result."""
        return not self.future.done() and now < self.ticket.deadline

    @property
    def waited(self) -> float:
        """Time in the queue, s."""
        return self.started - self.ticket.arrived

    @property
    def place(self) -> str:
        """Stage of the member: `run` or `queue`."""
        return "run" if self.started else "queue"


# Time to send a response while all cores are busy, and its maximum share of the deadline.
_SENDING_SECONDS, _SENDING_SHARE = 0.01, 0.05


class _UnwantedError(Exception):
    """No caller waits for the result any more."""


_Prepared = tuple[_Member, NDArray[Any]]


class Workers:
    """The worker threads behind an `Admission`.

    Args:
        admission: decides what runs; its `workers` is the number of concurrent runs.
        listener: callbacks for runs and for members without a response.
        clock: monotonic clock of the deadlines, s.
    """

    def __init__(
        self,
        admission: Admission,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admission = admission
        self._listener = listener
        self._clock = clock
        self._lock = threading.Lock()  # guards `_admission` and the data that it reads
        self._members: dict[Ticket, _Member] = {}  # changed on the event loop's thread only
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._batches: set[asyncio.Task[None]] = set()
        threads = 2 * admission.workers  # a short run may start beside each long one
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="model")
        self._decoders = FairThreads(cpus(), "decode")

    def check(self, count: int, runner: Runner, deadline: float, share: Share) -> None:
        """Refuse a request of `count` images early, if `run` would refuse it without decoding.

        Raises:
            SightlineError: see `Admission.offer`.
        """
        now = self._clock()
        due = _due(deadline, now)
        tickets = [Ticket(due, runner.lane, 1, share) for _ in range(count)]
        with self._lock:
            self._admission.check(tickets, now)

    async def run(
        self,
        work: Sequence[MemberWork[T]],
        runner: Runner,
        deadline: float,
        share: Share = Share(),  # noqa: B008 - immutable
    ) -> list[MemberResult[T]]:
        """Run a request's members and return their results in order.

        A member with bad input fails alone. If a member fails otherwise, or the caller cancels, the
        waiting members are not started.

        Args:
            work: at least one member; all with the same number of rows.
            runner: the model.
            deadline: time on the clock, s.
            share: caller of the work.

        Raises:
            SightlineError: see `Admission.offer`; RESOURCE_EXHAUSTED, `QUEUE_TOO_SLOW`, if a caller
                that has had less took its place, or its turn came too late; DEADLINE_EXCEEDED if
                the deadline has passed; UNAVAILABLE, `SHUTTING_DOWN`, if the server stopped before
                it was done.
            Exception: the error of the first member that failed for another reason than its input.
        """
        if self._stopped:
            raise _shutting_down()
        due = _due(deadline, self._clock())
        tickets = [Ticket(due, runner.lane, member.rows, share, member.effort) for member in work]
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[MemberResult[T]]] = [loop.create_future() for _ in work]
        with self._lock:  # a worker may take a member as soon as it is queued
            now = self._clock()
            gone = self._admission.offer(tickets, now)
            drained = self._admission.drained(now) if gone else 0.0
            for ticket, member, future in zip(tickets, work, futures, strict=True):
                self._members[ticket] = _Member(ticket, member, runner, future, futures)
        for ticket in gone:
            self._expire(self._members.pop(ticket), drained)
        self._start_what_fits()
        try:
            if len(futures) == 1:  # the usual case, without the cost of `gather`
                return [await futures[0]]
            return await asyncio.gather(*futures)
        finally:
            self._withdraw(tickets)

    def give_up(self) -> None:
        """Fail all unfinished and all further requests with UNAVAILABLE."""
        self._stopped = True
        for member in self._members.values():
            _fail(member, _shutting_down())

    def close(self) -> None:
        """Wait for the runs in progress, and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._decoders.close()

    def _withdraw(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket in self._members:
                self._abandon(self._members[ticket])
            with self._lock:
                waited = self._admission.withdraw(ticket)
            if waited:
                del self._members[ticket]

    def _abandon(self, member: _Member) -> None:
        member.future.cancel()  # if `gather` has not done so
        if member.future.cancelled():
            in_time = self._clock() < member.ticket.deadline
            self._listener.expired("cancelled" if in_time else member.place)

    def _start_what_fits(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while True:
            now = self._clock()
            with self._lock:
                dispatch = self._admission.take(now)
            self._expire_all(dispatch)
            if not dispatch.batch:
                break
            self._start([self._members[ticket] for ticket in dispatch.batch])
        if dispatch.wake_at is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(dispatch.wake_at - now, 0.0), self._start_what_fits)

    def _start(self, batch: Sequence[_Member]) -> None:
        loop, now = asyncio.get_running_loop(), self._clock()
        for member in batch:
            member.started = now
        if len(batch) == 1:
            self._pool.submit(self._run_singly, batch[0], loop)
            return
        task = loop.create_task(self._run_batch(batch))
        self._batches.add(task)  # a reference, so that it is not garbage-collected
        task.add_done_callback(self._batches.discard)

    def _run_singly(self, member: _Member | None, loop: asyncio.AbstractEventLoop) -> None:
        """Run a single member in a worker, and then the next single members."""
        while member is not None:
            outcome = self._run_alone(member)
            dispatch = self._take_next(member, outcome)
            following = self._begin_single(dispatch)
            try:
                loop.call_soon_threadsafe(self._finish_alone, member, outcome, dispatch)
            except RuntimeError:  # the loop is closed: no caller waits any more
                return
            member = following

    def _run_alone(self, member: _Member) -> "MemberResult[Any] | BaseException":
        try:
            return self._infer([(member, self._prepare(member))])[0]
        except BaseException as error:  # noqa: BLE001 - it is raised in the member's caller
            return error

    def _take_next(
        self, member: _Member, outcome: "MemberResult[Any] | BaseException"
    ) -> Dispatch | None:
        """Release the worker and return its next work; None if the event loop must decide."""
        # A failure may cancel other members, which the event loop must withdraw first.
        if not isinstance(outcome, MemberResult):
            return None
        with self._lock:
            self._learn([member], [outcome])
            self._admission.done([member.ticket], self._clock() - member.started)
            return self._admission.take(self._clock())

    def _begin_single(self, dispatch: Dispatch | None) -> _Member | None:
        if dispatch is None or len(dispatch.batch) != 1:
            return None
        member = self._members[dispatch.batch[0]]
        member.started = self._clock()
        return member

    def _finish_alone(
        self,
        member: _Member,
        outcome: "MemberResult[Any] | BaseException",
        dispatch: Dispatch | None,
    ) -> None:
        self._settle([member], [outcome])
        if dispatch is None:
            self._free([member])
            return
        del self._members[member.ticket]
        self._expire_all(dispatch)
        if len(dispatch.batch) > 1:
            self._start([self._members[ticket] for ticket in dispatch.batch])
        self._start_what_fits()

    async def _run_batch(self, batch: Sequence[_Member]) -> None:
        loop = asyncio.get_running_loop()
        try:
            ready = await self._prepare_all(batch)
            if ready:
                results = await loop.run_in_executor(self._pool, self._infer, ready)
                members = [member for member, _ in ready]
                with self._lock:
                    self._learn(members, results)
                self._settle(members, results)
        finally:
            self._free(batch)

    async def _prepare_all(self, batch: Sequence[_Member]) -> list[_Prepared]:
        """Prepare all inputs; return the members that are still wanted, and settle the others."""
        jobs = [
            self._decoders.submit(
                member.ticket.share.flow, functools.partial(self._prepare, member)
            )
            for member in batch
        ]
        inputs = await asyncio.gather(*map(asyncio.wrap_future, jobs), return_exceptions=True)
        ready: list[_Prepared] = []
        for member, rows in zip(batch, inputs, strict=True):
            if isinstance(rows, BaseException):
                self._settle([member], [rows])
            elif member.wanted(self._clock()):
                ready.append((member, rows))
            else:
                self._expire(member)
        return ready

    def _prepare(self, member: _Member) -> NDArray[Any]:
        self._require(member)
        started = time.perf_counter()
        rows = member.work.prepare()
        member.decode = time.perf_counter() - started
        self._require(member)
        return rows

    def _require(self, member: _Member) -> None:
        if not member.wanted(self._clock()):
            raise _UnwantedError

    def _infer(self, ready: Sequence[_Prepared]) -> "list[MemberResult[Any] | Exception]":
        """Run members in one batch; if it fails, run each alone, since one may be the cause."""
        started = time.perf_counter()
        try:
            outputs = ready[0][0].runner.run(_joined([rows for _, rows in ready]))
        except (SightlineError, MemoryError) as error:
            return [error] if len(ready) == 1 else [self._infer([single])[0] for single in ready]
        infer = time.perf_counter() - started
        results: list[MemberResult[Any] | Exception] = []
        at = 0
        for member, rows in ready:
            own = [output[at : at + len(rows)] for output in outputs]
            at += len(rows)
            results.append(_finish(member, own, infer, len(ready), self._clock))
        return results

    def _learn(
        self, members: Sequence[_Member], outcomes: "Sequence[MemberResult[Any] | BaseException]"
    ) -> None:
        """Update the estimates from the members of a run; call with the lock held."""
        if any(isinstance(outcome, MemberResult) for outcome in outcomes):
            estimates, now = members[0].ticket.lane.estimates, self._clock()
            for member in members:
                if member.ticket.effort:
                    estimates.learn_decoding(member.ticket.effort, member.decode, now)
            decoding = max(m.decode if m.ticket.effort else 0.0 for m in members)
            run = now - members[0].started - decoding
            estimates.learn(_rows(members), max(run, 0.0), now)

    def _settle(
        self, members: Sequence[_Member], outcomes: "Sequence[MemberResult[Any] | BaseException]"
    ) -> None:
        """Deliver the results of the members of a run."""
        if any(isinstance(outcome, MemberResult) for outcome in outcomes):
            self._listener.batch(members[0].runner.name, _rows(members))
        now = self._clock()
        for member, outcome in zip(members, outcomes, strict=True):
            self._answer(member, outcome, now)

    def _answer(
        self, member: _Member, outcome: "MemberResult[Any] | BaseException", now: float
    ) -> None:
        if isinstance(outcome, _UnwantedError) or not member.wanted(now):
            self._expire(member)
        elif isinstance(outcome, MemberResult):
            member.future.set_result(outcome)
        elif isinstance(outcome, SightlineError) and outcome.category is Category.VALIDATION:
            member.future.set_result(
                MemberResult(without_frames(outcome), member.waited, member.decode)
            )
        else:
            _fail(member, outcome)

    def _expire(self, member: _Member, retry_after: float = 0.0) -> None:
        """Fail a member that is late or has lost its place in the queue."""
        if not member.future.done():
            self._listener.expired(member.place)
            now = self._clock()
            over = member.started or now >= member.ticket.deadline
            _fail(member, late() if over else displaced(retry_after))

    def _expire_all(self, dispatch: Dispatch) -> None:
        for ticket in dispatch.late:
            self._expire(self._members.pop(ticket))

    def _free(self, batch: Sequence[_Member]) -> None:
        for member in batch:
            del self._members[member.ticket]
        with self._lock:
            seconds = self._clock() - batch[0].started
            self._admission.done([member.ticket for member in batch], seconds)
        self._start_what_fits()


def _due(deadline: float, now: float) -> float:
    """Return the time at which a response must be sent to arrive by the deadline."""
    return deadline - min(_SENDING_SECONDS, max(deadline - now, 0.0) * _SENDING_SHARE)


def _rows(members: Sequence[_Member]) -> int:
    return sum(member.ticket.rows for member in members)


def _joined(inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return inputs[0] if len(inputs) == 1 else np.concatenate(inputs)


def _finish(
    member: _Member, own: Outputs, infer: float, batch: int, clock: Callable[[], float]
) -> MemberResult[Any] | Exception:
    started = time.perf_counter()
    try:
        result = member.work.finish(own)
    except Exception as error:  # noqa: BLE001 - it is raised in the member's caller
        return error
    post = time.perf_counter() - started
    return MemberResult(result, member.waited, member.decode, infer, post, batch, clock())


def _fail(member: _Member, error: BaseException) -> None:
    if not member.future.done():
        member.future.set_exception(error)
        for other in member.request:  # immediately: a worker may be about to take them
            other.cancel()


def late() -> SightlineError:
    """Return the error for a call whose deadline passes before its answer is ready."""
    return SightlineError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "the deadline passed before the model answered",
    )


def _shutting_down() -> SightlineError:
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE,
        "SHUTTING_DOWN",
        "the server is shutting down: try another server",
    )
