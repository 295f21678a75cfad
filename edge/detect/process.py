"""A detector in a separate process, whose crash or hang is an error and does not end the node."""

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.detect.base import Detector, DetectorResult, Image
from edge.detect.child import pickled
from edge.detect.frames import FrameWriter
from edge.detect.images import pixels
from edge.detect.messages import DetectorReply, Reply, reply_error
from edge.detect.supervisor import ProcessSupervisor, closed
from servicekit.errors import SightlineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ProcessDetector:
    """A detector that runs another detector in a separate process. Thread-safe.

    It processes one image at a time. A segmentation fault in a runtime, the kernel's OOM killer or
    a run that never ends fails one image. The process is then restarted in the background, with a
    delay that doubles from 0.5 s to 30 s; requests fail immediately until it is ready. The process
    ends within a second after this one, however this one ends. Construct it after forking.

    Args:
        factory: constructs the detector in the other process: a class or a function of an
            importable module, or a `functools.partial` of one, such as
            `partial(OnnxDetector, "model.onnx")`.
        hang_seconds: duration of one run after which the process is killed, > 0.
        load_seconds: duration of the loading after which the process is killed, > 0.
        shared_memory: transfer images in shared memory if the system has it.

    Raises:
        ValueError: an argument is out of range, or `factory` cannot be pickled.
        vision.ModelError: the detector raised it.
        ModuleNotFoundError: the detector needs a module that is not installed.
        SightlineError: loading crashed (`DEVICE_CRASHED`), took too long (`DEVICE_HUNG`), or raised
            another exception (`DEVICE_FAILED`).

    Example:
        >>> from functools import partial
        >>> from sightline import OnnxDetector, ProcessDetector
        >>> detector = ProcessDetector(partial(OnnxDetector, "model.onnx"), hang_seconds=10.0)
        >>> len(detector.detect("photo.jpg").detections)
        3
        >>> detector.close()
    """

    def __init__(
        self,
        factory: Callable[[], Detector],
        *,
        hang_seconds: float = 10.0,
        load_seconds: float = 600.0,
        shared_memory: bool = True,
    ) -> None:
        for name, value in (("hang_seconds", hang_seconds), ("load_seconds", load_seconds)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        data = pickled(factory)
        self._hang_seconds = hang_seconds
        self._lock = threading.Lock()
        self._frames = FrameWriter(shared=shared_memory)
        try:
            self._supervisor = ProcessSupervisor(data, self._frames.fd, load_seconds)
        except BaseException:
            self._frames.close()
            raise
        self._finalizer = weakref.finalize(
            self, _end, os.getpid(), self._supervisor, self._frames, self._lock
        )

    @property
    def name(self) -> str:
        """The detector's name."""
        return self._supervisor.loaded.name

    @property
    def version(self) -> str:
        """The detector's version. A restart may load a newer file and change it."""
        return self._supervisor.loaded.version

    @property
    def labels(self) -> tuple[str, ...]:
        """The detector's labels; empty: it does not report them."""
        return self._supervisor.loaded.labels

    @property
    def provider(self) -> str:
        """The provider or device that the detector uses."""
        return f"{self._supervisor.loaded.provider or 'its runtime'} in a process of its own"

    @property
    def pid(self) -> int | None:
        """The process id; None: the process is being restarted or the detector is closed."""
        try:
            return self._supervisor.child().pid
        except SightlineError:
            return None

    def detect(self, image: Image) -> DetectorResult:
        """Detect objects in one image, or classify it; see `edge.detect.Detector`.

        Raises:
            SightlineError: the image is invalid (INVALID_ARGUMENT); the process crashed
                (`DEVICE_CRASHED`), did not answer in time (`DEVICE_HUNG`) or is being restarted
                (`DEVICE_RESTARTING`); the detector is closed (`DEVICE_CLOSED`); or the model
                raised an exception (`DEVICE_FAILED`).
        """
        payload = image if isinstance(image, bytes | str | Path) else pixels(image)
        reply = self._ask(payload)
        if isinstance(reply, DetectorReply):
            return reply.result
        raise reply_error(reply)

    def close(self) -> None:
        """End the process. A request in progress gets no reply. Repeated calls have no effect."""
        self._finalizer()

    def _ask(self, payload: "NDArray[np.uint8] | bytes | str | Path") -> Reply:
        with self._lock:
            child = self._supervisor.child()
            try:
                reply = child.detect(self._frames.put(payload), self._hang_seconds)
            except SightlineError as error:
                self._supervisor.give_up(child)
                raise (closed() if self._supervisor.closing else error) from error
            except BaseException:  # such as Ctrl-C: a late reply must not answer the next request
                self._supervisor.give_up(child)
                raise
            self._supervisor.answered()
            return reply


def _end(
    owner: int, supervisor: ProcessSupervisor, frames: FrameWriter, lock: threading.Lock
) -> None:
    if os.getpid() != owner:  # a forked child must not end the process of its parent
        return
    supervisor.close()
    with lock:  # an image may be being written
        frames.close()
