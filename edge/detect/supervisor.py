"""The supervisor of a detector's process: restarts it with exponential back-off when it ends."""

import logging
import threading

import grpc

from edge.detect.child import Child
from edge.detect.messages import LoadReply
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_MIN_DELAY_SECONDS = 0.5
_MAX_DELAY_SECONDS = 30.0
_CLOSING_SECONDS = 5.0


class ProcessSupervisor:
    """A supervisor of one process at a time, with a thread that waits for its end. Thread-safe.

    The constructor returns when the first process has loaded its detector.

    Args:
        factory: the pickled factory of the detector.
        memory: file descriptor of the shared memory for images; None: there is none.
        load_seconds: time after which a process that loads its detector is killed.

    Raises:
        Exception: the first process cannot load its detector; see `Child.load`.
    """

    def __init__(self, factory: bytes, memory: int | None, load_seconds: float) -> None:
        self._factory = factory
        self._memory = memory
        self._load_seconds = load_seconds
        # Reentrant: the garbage collector may close a detector in any thread, at any time.
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._running: Child | None = None
        self._ready: Child | None = None
        self._starts = 0  # since the last answered image
        self.loaded = self._start()
        self._thread = threading.Thread(
            target=self._supervise, name="detector-supervisor", daemon=True
        )
        self._thread.start()

    def child(self) -> Child:
        """Return the process that is ready for requests.

        Raises:
            SightlineError: UNAVAILABLE: the process is being restarted (`DEVICE_RESTARTING`), or
                the supervisor is closed (`DEVICE_CLOSED`).
        """
        with self._lock:
            if self._ready is not None and not self._closing.is_set():
                return self._ready
        if self._closing.is_set():
            raise closed()
        text = "the model's process has ended and is being started again"
        raise SightlineError(grpc.StatusCode.UNAVAILABLE, "DEVICE_RESTARTING", text)

    def answered(self) -> None:
        """Reset the restart delay, because the process has answered."""
        self._starts = 0

    def give_up(self, child: Child) -> None:
        """Kill a process that has failed; the next one is started in the background."""
        with self._lock:
            if self._ready is child:
                self._ready = None
        child.kill()

    def close(self) -> None:
        """End the process and the thread. A request in progress gets no reply."""
        with self._lock:
            self._closing.set()
            child, self._ready = self._running, None
        if child is not None:
            child.end()
        if self._thread is not threading.current_thread():
            # A process that is stuck in a driver survives SIGKILL, so do not wait for ever.
            self._thread.join(_CLOSING_SECONDS)

    @property
    def closing(self) -> bool:
        """True once `close` was called."""
        return self._closing.is_set()

    def _start(self) -> LoadReply:
        with self._lock:
            if self._closing.is_set():
                raise closed()
            self._starts += 1
            self._running = child = Child(self._memory)
        try:
            loaded = child.load(self._factory, self._load_seconds)
        except BaseException:
            child.kill()
            child.wait()
            child.close()
            raise
        with self._lock:
            self._ready = child
        return loaded

    def _supervise(self) -> None:
        while self._running is not None:
            ending = self._running.wait()
            with self._lock:
                self._ready = None
            self._running.close()
            if self._closing.is_set():
                return
            logger.warning("the model's process %s and is started again", ending)
            self._restart()

    def _restart(self) -> None:
        while not self._closing.wait(self._restart_delay()):
            try:
                self.loaded = self._start()
            except Exception as error:  # noqa: BLE001 - a later restart may find a repaired file
                if not self._closing.is_set():
                    logger.warning("the model's process cannot be started again: %s", error)
            else:
                return

    def _restart_delay(self) -> float:
        """Return the seconds until the next start: each failed start costs the device CPU time."""
        failed_starts = max(self._starts - 1, 0)
        return min(_MIN_DELAY_SECONDS * 2.0 ** min(failed_starts, 16), _MAX_DELAY_SECONDS)


def closed() -> SightlineError:
    """Return the error for a request to a closed detector."""
    text = "the detector is closed"
    return SightlineError(grpc.StatusCode.UNAVAILABLE, "DEVICE_CLOSED", text)
