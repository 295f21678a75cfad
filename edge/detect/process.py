"""A detector in a process of its own: its crash or hang is an error, not the end of the node."""

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
    """Runs another detector in a process of its own. Safe in threads, one image at a time.

    A segmentation fault in a runtime, the kernel's OOM killer or a run that never ends costs one
    image. The process is started again in the background, at first after half a second, then
    after longer and longer; images that come meanwhile fail at once. It ends with this process,
    however this one ends, within a second. Make it after forking.

    Args:
        factory: makes the detector, in the other process: a class or a function of a module that
            can be imported, or a `functools.partial` of one, such as
            `partial(OnnxDetector, "model.onnx")`.
        hang_seconds: of one image, after which its run is given up and the process is killed,
            > 0.
        load_seconds: of loading the detector, after which the process is killed, > 0.
        shared_memory: whether images travel in shared memory, where the system has it.

    Raises:
        ValueError: an argument is out of its range, or `factory` cannot be told to a process.
        vision.ModelError: the detector's own.
        ModuleNotFoundError: the detector needs a module that is not there.
        SightlineError: loading it crashed (`DEVICE_CRASHED`), took too long (`DEVICE_HUNG`), or
            raised something else (`DEVICE_FAILED`).

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
                raise ValueError(f"{name} must be above 0 and finite, is {value}")
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
        """The detector's version; after a restart that of the file that is there then."""
        return self._supervisor.loaded.version

    @property
    def labels(self) -> tuple[str, ...]:
        """The detector's labels; empty: it does not say."""
        return self._supervisor.loaded.labels

    @property
    def provider(self) -> str:
        """What the detector runs on."""
        return f"{self._supervisor.loaded.provider or 'its runtime'} in a process of its own"

    @property
    def pid(self) -> int | None:
        """The process id; None: it is being started again, or closed."""
        try:
            return self._supervisor.child().pid
        except SightlineError:
            return None

    def detect(self, image: Image) -> DetectorResult:
        """Find objects in one image, or name what it shows; see `edge.detect.Detector`.

        Raises:
            SightlineError: the image is at fault (INVALID_ARGUMENT); the process ended
                (`DEVICE_CRASHED`), gave no answer (`DEVICE_HUNG`), is being started again
                (`DEVICE_RESTARTING`) or closed (`DEVICE_CLOSED`); or the model raised
                (`DEVICE_FAILED`).
        """
        payload = image if isinstance(image, bytes | str | Path) else pixels(image)
        reply = self._ask(payload)
        if isinstance(reply, DetectorReply):
            return reply.result
        raise reply_error(reply)

    def close(self) -> None:
        """End the process; an image that is being looked at is not answered. May be repeated."""
        self._finalizer()

    def _ask(self, payload: "NDArray[np.uint8] | bytes | str | Path") -> Reply:
        with self._lock:
            child = self._supervisor.child()
            try:
                reply = child.detect(self._frames.put(payload), self._hang_seconds)
            except SightlineError as error:
                self._supervisor.give_up(child)
                raise (closed() if self._supervisor.closing else error) from error
            except BaseException:  # Ctrl-C, say: its reply must not be taken for the next one's
                self._supervisor.give_up(child)
                raise
            self._supervisor.answered()
            return reply


def _end(
    owner: int, supervisor: ProcessSupervisor, frames: FrameWriter, lock: threading.Lock
) -> None:
    if os.getpid() != owner:  # a fork of the owner, whose end is none of the process's business
        return
    supervisor.close()
    with lock:  # whoever lays down an image finishes first
        frames.close()
