"""The program of a detector's process: `python -m edge.detect.worker SOCKET MEMORY OWNER`.

SOCKET and MEMORY are inherited file descriptors (MEMORY -1: none), OWNER is the owner's process id.
`edge.detect.process.ProcessDetector` starts it; users do not.
"""

import contextlib
import faulthandler
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge.detect.base import Detector, close_detector
from edge.detect.frames import FrameReader
from edge.detect.messages import (
    DetectorFailure,
    DetectorRefusal,
    DetectorReply,
    DetectRequest,
    LoadReply,
    LoadRequest,
    Reply,
    receive,
    send,
)
from servicekit import standard_streams
from servicekit.errors import SightlineError

_OWNER_CHECK_SECONDS = 0.5
_OOM_SCORE = "500"


def main(arguments: list[str]) -> None:
    """Serve one owner until it closes the socket or ends."""
    wire, memory, owner = (int(argument) for argument in arguments)
    # What a model's library prints must not fail where nobody reads it.
    standard_streams.install(lossy_stdout=True)
    faulthandler.enable()
    _be_killed_first()
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    frames = FrameReader(memory if memory >= 0 else None)
    with socket.socket(fileno=wire) as connection, contextlib.suppress(EOFError, OSError):
        _serve(connection, frames)


def _serve(wire: socket.socket, frames: FrameReader) -> None:
    detector: Detector | None = None
    try:
        while True:
            request = receive(wire)
            if isinstance(request, LoadRequest):
                detector, reply = _load(request)
            elif detector is not None and isinstance(request, DetectRequest):
                reply = _detect(detector, request, frames)
            else:
                raise RuntimeError(f"expected a LoadRequest before other requests, got {request!r}")
            send(wire, reply)
    finally:
        if detector is not None:
            close_detector(detector)


def _load(request: LoadRequest) -> tuple[Detector | None, Reply]:
    try:
        factory: Callable[[], Detector] = pickle.loads(request.factory)  # noqa: S301 - the owner's
        detector = factory()
        provider = str(getattr(detector, "provider", ""))
        labels = tuple(getattr(detector, "labels", ()))
        return detector, LoadReply(detector.name, detector.version, provider, labels)
    except Exception as error:  # noqa: BLE001 - the reply tells the owner about every failure
        return None, _reply_for(error)


def _detect(detector: Detector, request: DetectRequest, frames: FrameReader) -> Reply:
    try:
        return DetectorReply(detector.detect(frames.get(request)))
    except Exception as error:  # noqa: BLE001 - as above
        return _reply_for(error)


def _reply_for(error: Exception) -> Reply:
    if isinstance(error, SightlineError):
        return DetectorRefusal.of(error)
    module = (error.name or "") if isinstance(error, ImportError) else ""
    reason = str(getattr(error, "reason", ""))
    return DetectorFailure(type(error).__name__, str(error), reason, module)


def _be_killed_first() -> None:
    """Make the kernel's OOM killer choose this process before the node's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _end_with(owner: int) -> None:
    """End this process when its owner has ended, even during a run."""
    while os.getppid() == owner:
        time.sleep(_OWNER_CHECK_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
