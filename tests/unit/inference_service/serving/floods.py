"""Simulated callers of all kinds and workers, on a clock of their own.

The admission is the real one. Runs take what the test says, so a flood of half a minute is over in
a moment, and the same seed gives the same outcome. There is a processor for each worker; runs that
are more than that share them.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from inference_service.serving.admission import Admission, Lane, Share, Ticket
from servicekit.errors import SightlineError

DECODE_SECONDS = 1e-8  # per pixel


@dataclass(frozen=True)
class FloodKind:
    """The requests that a caller sends repeatedly."""

    name: str
    rate: float
    """Requests per second."""
    deadline: float
    """Seconds."""
    lane: str = "model"
    pictures: int = 1
    pixels: int = 0
    weight: float = 1.0
    identities: int | None = 1
    """Callers that take turns; None: a new one for each request."""
    burst: int = 1
    """Requests that come together."""
    paced: bool = False
    """Whether requests come half to one and a half of their mean distance apart, as a camera's do,
    and not at random times (Poisson)."""
    patience: float | None = None
    """Seconds after which a caller gives up, which cancels its request; None: it does not."""


@dataclass(eq=False)
class FloodRequest:
    kind: FloodKind
    tickets: list[Ticket]
    left: int = 0
    lost: bool = False


@dataclass
class FloodOutcome:
    """Outcomes of the requests of one kind."""

    asked: int = 0
    in_time: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    worker_seconds: float = 0.0
    """Of runs whose requests were answered in time."""

    @property
    def ratio(self) -> float:
        return self.in_time / self.asked if self.asked else 1.0


@dataclass(eq=False)
class FloodRun:
    """A run in progress."""

    left: float
    """Seconds of a processor."""
    end: Callable[[], None]


class FloodWorld:
    """Workers and callers.

    Args:
        run_seconds: of one row, by lane.
        workers: runs at a time.
        queue_size: rows that wait.
        max_rows: of one run.
        seed: of everything that is random.
        noise: runs take up to this share more or less than usual.
    """

    def __init__(
        self,
        run_seconds: dict[str, float],
        *,
        workers: int = 2,
        queue_size: int = 64,
        max_rows: int = 1,
        seed: int = 0,
        noise: float = 0.1,
    ) -> None:
        self.now = 0.0
        self.outcomes: dict[str, FloodOutcome] = {}
        self.admission = Admission(workers=workers, queue_size=queue_size)
        self.busy = 0.0
        """Worker seconds of all runs."""
        self.idle = 0.0
        """Worker seconds in which a worker was free although something waited."""
        self.workers = workers
        self._noise = noise
        self._chance = random.Random(seed)
        self._seconds = {Lane(max_rows): run_seconds[name] for name in run_seconds}
        self._lanes = dict(zip(run_seconds, self._seconds, strict=True))
        self._requests: dict[Ticket, FloodRequest] = {}
        self._runs: dict[FloodRun, None] = {}
        self._ran_until = 0.0
        self._plan = 0  # number of the latest change of what runs
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def warm_up(self) -> None:
        """Let it learn how long its models take."""
        for lane, seconds in self._seconds.items():
            for _ in range(5):
                lane.estimates.learn(1, seconds, 0.0)

    def run(self, kinds: list[FloodKind], seconds: float) -> None:
        """Let the callers come for so many seconds, and see what becomes of them."""
        for kind in kinds:
            self.outcomes.setdefault(kind.name, FloodOutcome())
            self._arrive(kind, self._times(kind, seconds), itertools.count())
        while self._events:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        assert not self._requests, "everybody is told what became of it"
        assert self.admission.depth == self.admission.running == 0

    def _times(self, kind: FloodKind, seconds: float) -> Iterator[float]:
        rate, at = kind.rate / kind.burst, 0.0
        while True:
            paced = self._chance.uniform(0.5, 1.5) / rate
            at += paced if kind.paced else self._chance.expovariate(rate)
            if at >= seconds:
                return
            yield at

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happen))

    def _arrive(self, kind: FloodKind, times: Iterator[float], numbers: Iterator[int]) -> None:
        at = next(times, None)
        if at is None:
            return

        def happen() -> None:
            for _ in range(kind.burst):
                self._ask(kind, next(numbers))
            self._arrive(kind, times, numbers)

        self._at(at, happen)

    def _ask(self, kind: FloodKind, number: int) -> None:
        who = number if kind.identities is None else number % kind.identities
        share = Share(f"{kind.name}-{who}", kind.weight)
        lane, due = self._lanes[kind.lane], self.now + kind.deadline
        tickets = [Ticket(due, lane, 1, share, kind.pixels) for _ in range(kind.pictures)]
        request = FloodRequest(kind, tickets, len(tickets))
        self.outcomes[kind.name].asked += 1
        self._run_on()
        try:
            gone = self.admission.offer(tickets, self.now)
        except SightlineError as error:
            self.outcomes[kind.name].reasons[error.reason] += 1
            return
        self._requests.update(dict.fromkeys(tickets, request))
        for ticket in gone:
            self._lose(ticket, "crowded out")
        if kind.patience is not None:
            self._at(self.now + kind.patience, lambda: self._give_up(request))
        self._start()

    def _give_up(self, request: FloodRequest) -> None:
        for ticket in request.tickets:
            if self.admission.withdraw(ticket):
                self._lose(ticket, "gave up")

    def _lose(self, ticket: Ticket, why: str) -> None:
        request = self._requests.pop(ticket)
        if not request.lost:
            self.outcomes[request.kind.name].reasons[why] += 1
        request.lost = True

    def _start(self) -> None:
        while True:
            taken = self.admission.take(self.now)
            for ticket in taken.late:
                self._lose(ticket, "late")
            if not taken.batch:
                break
            self._begin(list(taken.batch))
        if taken.wake_at is not None:
            self._at(taken.wake_at, self._start)

    def _begin(self, batch: list[Ticket]) -> None:
        lane, effort = batch[0].lane, max(ticket.effort for ticket in batch)
        usual = self._seconds[lane] * len(batch) ** 0.5
        run = usual * self._chance.uniform(1 - self._noise, 1 + self._noise)
        decode = effort * DECODE_SECONDS
        self.busy += run + decode
        begun = self.now

        def end() -> None:
            took = self.now - begun
            lane.estimates.learn(len(batch), took * run / (run + decode), self.now)
            if effort:
                lane.estimates.learn_decoding(effort, took * decode / (run + decode), self.now)
            self.admission.done(batch, took)
            for ticket in batch:
                self._answer(ticket, (run + decode) / len(batch))
            self._start()

        self._run_on()
        self._runs[FloodRun(run + decode, end)] = None
        self._plan_next_end()

    def _run_on(self) -> None:
        """Let what runs have had its part of the processors until now."""
        had = (self.now - self._ran_until) * self._speed
        for run in self._runs:
            run.left -= had
        if self.admission.depth:
            free = max(self.workers - len(self._runs), 0)
            self.idle += free * (self.now - self._ran_until)
        self._ran_until = self.now

    def _plan_next_end(self) -> None:
        self._plan += 1
        if not self._runs:
            return
        plan, first = self._plan, min(self._runs, key=lambda run: run.left)

        def happen() -> None:
            if plan != self._plan:
                return  # something else has begun or ended before
            self._run_on()
            del self._runs[first]
            self._plan_next_end()
            first.end()

        self._at(self.now + first.left / self._speed, happen)

    @property
    def _speed(self) -> float:
        return min(self.workers / max(len(self._runs), 1), 1.0)

    def _answer(self, ticket: Ticket, seconds: float) -> None:
        if self.now > ticket.deadline:
            self._lose(ticket, "answered late")
            return
        request = self._requests.pop(ticket)
        request.left -= 1
        outcome = self.outcomes[request.kind.name]
        outcome.worker_seconds += seconds
        if not request.left and not request.lost:
            outcome.in_time += 1
