"""A model and work for it that a test can delay, and a listener that records events."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from inference_service.serving.admission import Lane
from inference_service.serving.work import MemberResult
from inference_service.serving.workers import Workers
from servicekit.errors import SightlineError


@dataclass(eq=False)
class Doubler:
    """A model that doubles what it gets, and can be held up or made to fail."""

    lane: Lane = field(default_factory=Lane)
    name: str = "doubler"
    batches: list[list[float]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    fails_on: float | None = None
    lacks_memory_on: float | None = None

    def __post_init__(self) -> None:
        self.go.set()

    def run(self, batch: NDArray[Any]) -> Sequence[NDArray[Any]]:
        self.batches.append([float(row) for row in batch[:, 0]])
        self.began.set()
        assert self.go.wait(10)
        if self.fails_on in batch:
            raise SightlineError(grpc.StatusCode.INTERNAL, "MODEL_RUN_FAILED", "x")
        if self.lacks_memory_on in batch:
            raise MemoryError
        return [batch * 2, batch + 1]

    def hold(self) -> None:
        self.go.clear()
        self.began.clear()


@dataclass
class Number:
    """Work that asks for the double of a number."""

    value: float
    rows: int = 1
    effort: int = 0
    error: Exception | None = None
    on_prepare: Callable[[], object] = lambda: None
    on_finish: Callable[[], object] = lambda: None
    threads: list[int] = field(default_factory=list)

    def prepare(self) -> NDArray[Any]:
        self.threads.append(threading.get_ident())
        self.on_prepare()
        if self.error:
            raise self.error
        return np.full((self.rows, 1), self.value)

    def finish(self, outputs: Sequence[NDArray[Any]]) -> list[float]:
        self.on_finish()
        assert np.array_equal(outputs[1], np.full((self.rows, 1), self.value + 1))
        return [float(row) for row in outputs[0][:, 0]]


class Heard:
    """A listener that records its events."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.lost: Counter[str] = Counter()

    def batch(self, model: str, rows: int) -> None:
        assert model == "doubler"
        self.rows.append(rows)

    def expired(self, where: str) -> None:
        self.lost[where] += 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event for most conditions
            await asyncio.sleep(0.001)


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


def results(ran: Sequence[MemberResult[Any]]) -> list[Any]:
    return [each.result for each in ran]


async def busy(workers: Workers, model: Doubler) -> "asyncio.Task[list[MemberResult[Any]]]":
    """Return a call that holds the only worker until `model.go` is set."""
    model.hold()
    call = asyncio.create_task(workers.run([Number(0)], model, soon()))
    await until(model.began.is_set)
    return call
