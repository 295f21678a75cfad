"""Keeps a detector's process alive: when it ends, another is started, after longer and longer."""

import logging
import threading

import grpc

from edge.detect.child import Child
from edge.detect.messages import LoadReply
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
_CLOSING_SECONDS = 5.0


class ProcessSupervisor:
    """One process at a time, and a thread that waits for its end. Safe in threads.

    Args:
        factory: of the detector, pickled.
        memory: file descriptor of the shared memory for images; None: there is none.
        load_seconds: until a process that loads its detector is killed.

    Raises:
        Exception: see `Child.load`: the first process is loaded when this returns.
    """

    def __init__(self, factory: bytes, memory: int | None, load_seconds: float) -> None:
        self._factory = factory
        self._memory = memory
        self._load_seconds = load_seconds
        # Reentrant: garbage collection may close a forgotten detector in any thread, at any time.
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._running: Child | None = None
        self._ready: Child | None = None
        self._starts = 0  # since an image was last answered
        self.loaded = self._start()
        self._thread = threading.Thread(
            target=self._supervise, name="detector-supervisor", daemon=True
        )
        self._thread.start()

    def child(self) -> Child:
        """Return the process that is ready to be asked.

        Raises:
            SightlineError: UNAVAILABLE: there is none now (`DEVICE_RESTARTING`), or none any more
                (`DEVICE_CLOSED`).
        """
        with self._lock:
            if self._ready is not None and not self._closing.is_set():
                return self._ready
        if self._closing.is_set():
            raise closed()
        text = "the model's process has ended and is being started again"
        raise SightlineError(grpc.StatusCode.UNAVAILABLE, "DEVICE_RESTARTING", text)

    def answered(self) -> None:
        """Take note that the process works: after its end the next one is not waited for long."""
        self._starts = 0

    def give_up(self, child: Child) -> None:
        """End a process that has failed; its successor is started in the background."""
        with self._lock:
            if self._ready is child:
                self._ready = None
        child.kill()

    def close(self) -> None:
        """End the process and the thread; an image that is being looked at is not answered."""
        with self._lock:
            self._closing.set()
            child, self._ready = self._running, None
        if child is not None:
            child.end()
        if self._thread is not threading.current_thread():
            self._thread.join(_CLOSING_SECONDS)  # a process in a broken driver outlives SIGKILL

    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
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
            said = self._running.wait()
            with self._lock:
                self._ready = None
            self._running.close()
            if self._closing.is_set():
                return
            logger.warning("the model's process %s and is started again", said)
            self._restart()

    def _restart(self) -> None:
        while not self._closing.wait(self._restart_delay()):
            try:
                self.loaded = self._start()
            except Exception as error:  # noqa: BLE001 - whatever it is, the file may be replaced
                if not self._closing.is_set():
                    logger.warning("the model's process cannot be started again: %s", error)
            else:
                return

    def _restart_delay(self) -> float:
        """Seconds: longer with each start in vain, since loading costs the whole device time."""
        in_vain = max(self._starts - 1, 0)
        return min(_FIRST_WAIT_SECONDS * 2.0 ** min(in_vain, 16), _LONGEST_WAIT_SECONDS)


def closed() -> SightlineError:
    """Return the error of a detector that is asked after its end."""
    text = "the detector is closed"
    return SightlineError(grpc.StatusCode.UNAVAILABLE, "DEVICE_CLOSED", text)
