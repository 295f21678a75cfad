"""A thread pool that serves callers in turn, for work before the queue of the workers.

An executor of the standard library serves in order of arrival: a caller that sends a hundred large
requests at once delays all others until they are done.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]


class RoundRobin(Generic[T]):
    """A queue that takes one item of each flow in turn; items of a flow in order of arrival."""

    def __init__(self) -> None:
        self._flows: OrderedDict[str, deque[T]] = OrderedDict()  # next flow first

    def __len__(self) -> int:
        return sum(map(len, self._flows.values()))

    def put(self, flow: str, item: T) -> None:
        """Add an item behind those of its flow."""
        self._flows.setdefault(flow, deque()).append(item)

    def take(self) -> T:
        """Remove and return the next item; there must be one."""
        flow, items = self._flows.popitem(last=False)
        item = items.popleft()
        if items:
            self._flows[flow] = items  # the flow moves to the end
        return item


class FairThreads:
    """A thread pool that takes work of callers in turn.

    Args:
        count: number of threads, >= 1; each is started when it is first needed.
        name: prefix of the threads' names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._waiting: RoundRobin[_Job] = RoundRobin()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False
        self._changed = threading.Condition()

    def submit(self, flow: str, work: Callable[[], T]) -> "Future[T]":
        """Submit work, and return the future of its result.

        Args:
            flow: key of the caller.
            work: may block. It does not see the context variables of this method's caller.

        Raises:
            RuntimeError: the pool is closed.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the thread pool is closed")
            self._waiting.put(flow, (future, work))
            if len(self._waiting) > self._idle and len(self._threads) < self._count:
                self._start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Wait for all submitted work, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        name = f"{self._name}_{len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            _do(*job)
            del job  # or its arguments would stay in memory until the next job

    def _next(self) -> _Job | None:
        """Wait for the next job; None if the pool is closed."""
        with self._changed:
            self._idle += 1
            try:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                return self._waiting.take() if self._waiting else None
            finally:
                self._idle -= 1


def _do(future: "Future[T]", work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - it is raised in the waiting caller
        future.set_exception(error)
    else:
        future.set_result(result)
