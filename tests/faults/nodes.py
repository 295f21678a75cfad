"""Nodes in their own processes, which can be killed at any moment.

A node is forked, for each of its lives, from a server that has imported everything once: importing
would be most of a short life. It is a process like any other, and SIGKILL ends it.
"""

import fcntl
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge.log.logger import Milestone
from sightline import Box, Detection, Keypoint, LogOptions, Prediction, PredictionLogger
from tests.faults.ledger import Ledger
from tests.unit.edge.samples import eventually

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "tests.faults.nodes"])
# The exit code of a process can be read once, and every start reads those of all ended processes.
_STARTING_OR_ENDING = threading.Lock()
_ALIVE = "alive.lock"
_SMALL_AND_QUICK = LogOptions(batch_timeout_seconds=0.02, stream_size=100, disk_reserve_bytes=0)


@dataclass(frozen=True)
class Spec:
    """The instructions for a node."""

    target: str
    spool: Path
    """Name of the folder of its spool."""
    ledgers: Path
    """Folder of its ledger and of its stderr."""
    name: str
    """Name of this life, unique in the campaign."""
    device_id: str = "gate-1"
    predictions: int | None = None
    """Number of predictions to log before it closes; None to log until it is killed."""
    pause: float = 0.0
    """Seconds between bursts of up to 40 predictions."""
    options: LogOptions = field(default=_SMALL_AND_QUICK)

    def logger(self) -> PredictionLogger:
        """Return a logger that drops nothing."""
        return PredictionLogger(
            self.target,
            device_id=self.device_id,
            spool_dir=self.spool,
            on_full="block",
            options=self.options,
        )


def keep_logging(spec: Spec) -> None:
    """Log bursts, and record what is spooled."""
    ledger = Ledger(spec.ledgers, spec.name)
    log = spec.logger()
    log_bursts(log, ledger, spec.predictions, spec.pause)
    close(log)
    ledger.has_ended()


def log_and_close(spec: Spec) -> None:
    """Log, and close at once with the predictions still in memory."""
    ledger = Ledger(spec.ledgers, spec.name)
    log = spec.logger()
    count = spec.predictions or 0
    ledger.will_log(count)
    for number in range(count):
        log(sample(ledger.image_id(number)))
    close(log)
    ledger.has_spooled(count)
    ledger.has_ended()


def fork_and_log(spec: Spec) -> None:
    """Log and fork repeatedly; the children log a little, and some kill themselves.

    The process that is killed right after a fork can be the parent or the child.
    """
    ledger = Ledger(spec.ledgers, spec.name)
    log = spec.logger()
    threading.Thread(target=log_bursts, args=(log, ledger, None), daemon=True).start()
    for child in itertools.count():
        time.sleep(random.uniform(0.0, 0.05))
        fate = random.choice([None, None, random.uniform(0.0, 0.02), random.uniform(0.0, 0.2)])
        if os.fork() == 0:
            try:
                _live_as_child(log, Ledger(spec.ledgers, f"{spec.name}-{child}"), fate)
            finally:
                os._exit(1)  # an assertion has failed: its spool is audited all the same


def _live_as_child(log: PredictionLogger, ledger: Ledger, fate: float | None) -> None:
    """Log as a forked child and exit. `fate`: seconds after which the child kills itself."""
    if fate is not None:
        threading.Timer(fate, os.kill, (os.getpid(), signal.SIGKILL)).start()
    log_bursts(log, ledger, 100 if fate is None else None)
    close(log)
    ledger.has_ended()
    os._exit(0)


def log_bursts(
    log: PredictionLogger, ledger: Ledger, predictions: int | None, pause: float = 0.0
) -> None:
    """Log this many predictions, or without end, in bursts of random sizes."""
    number = 0
    while predictions is None or number < predictions:
        end = number + random.randint(1, 40)
        end = end if predictions is None else min(end, predictions)
        ledger.will_log(end)
        for index in range(number, end):
            log(sample(ledger.image_id(index)))
        wait_until_flushed(log)
        ledger.has_spooled(end)
        number = end
        if pause:
            time.sleep(pause)


def wait_until_flushed(
    log: PredictionLogger, seconds: float = 60.0, until: Milestone = "spooled"
) -> None:
    """Wait until everything is spooled, or committed. A drop makes one flush return False.

    Raises:
        AssertionError: the flush took too long.
    """
    deadline = time.monotonic() + seconds
    while not log.flush(max(0.0, deadline - time.monotonic()), until=until):
        assert log.stats().dropped, log.stats()
        assert time.monotonic() < deadline, log.stats()


def close(log: PredictionLogger) -> None:
    """Close a logger, and fail unless all of it is spooled, or was dropped."""
    if not log.close(60):
        wait_until_flushed(log, 1.0)  # at once: nothing to wait for


def sample(image_id: str) -> Prediction:
    """Return a prediction with a detection in it; of each second image, it has a keypoint."""
    number = int(image_id.rpartition("/")[2])
    name, points = ("posed", (Keypoint(number, 0.0),)) if number % 2 else ("thing", ())
    detection = Detection(len(image_id), name, 0.5, Box(0.0, 1.0, 2.0, 3.0), keypoints=points)
    return Prediction(image_id, "m", detections=(detection,))


class Node:
    """A life of a node.

    Args:
        spec: its instructions.
        life: function that the new process runs.
    """

    def __init__(self, spec: Spec, life: Callable[[Spec], None] = keep_logging) -> None:
        self._log = spec.ledgers / "nodes.log"
        self._ledger = spec.ledgers / f"{spec.name}.ledger"
        self._process = _CONTEXT.Process(target=_live, args=(life, spec, self._log), daemon=True)
        with _STARTING_OR_ENDING:
            self._process.start()

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Return True if the process has not ended."""
        with _STARTING_OR_ENDING:
            return self._process.is_alive()

    def kill(self) -> None:
        """Send SIGKILL and wait for the end; fail if the node had failed before."""
        with _STARTING_OR_ENDING:
            self._process.kill()
            self._process.join()
        assert self._process.exitcode in (-signal.SIGKILL, 0), self._log.read_text()

    def wait_until_it_logs(self, seconds: float = 60.0) -> None:
        """Wait until the node is about to log, or has ended."""

        def logs() -> bool:
            return self._ledger.exists() and self._ledger.stat().st_size > 0

        assert eventually(lambda: logs() or not self.is_alive, seconds), self._log.read_text()

    def wait(self, seconds: float = 60.0) -> None:
        """Wait until the node has ended by itself, without an error."""
        assert eventually(lambda: not self.is_alive, seconds)
        assert self._process.exitcode == 0, self._log.read_text()


@contextmanager
def running(spec: Spec, life: Callable[[Spec], None] = keep_logging) -> Iterator[Node]:
    """Run a node that is killed at the end of the block."""
    node = Node(spec, life)
    try:
        yield node
    finally:
        node.kill()


def drain(spec: Spec, seconds: float = 120.0) -> int:
    """Open the spool again, and wait until all of it, forks included, is committed.

    Returns:
        The number of damaged files found.
    """
    with (spec.ledgers / _ALIVE).open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)  # until the last forked child is gone
    with replace(spec, options=LogOptions()).logger() as log:
        wait_until_flushed(log, seconds, until="committed")
        deadline = time.monotonic() + seconds
        while list(spec.spool.glob("forks/*/spool.db")):
            assert time.monotonic() < deadline, log.stats()
            time.sleep(0.05)
        return log.stats().damaged_spools


def _live(life: Callable[[Spec], None], spec: Spec, log: Path) -> None:
    stderr = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(stderr, 2)
    random.seed(spec.name)
    with (spec.ledgers / _ALIVE).open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_SH)  # held by this process and its forks
        life(spec)
