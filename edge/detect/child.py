"""The process of a detector, as its owner sees it: start, requests, end."""

import os
import pickle
import pickletools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import grpc

from edge.detect.base import Detector
from edge.detect.messages import (
    DetectorFailure,
    DetectRequest,
    LoadReply,
    LoadRequest,
    Reply,
    receive,
    reply_error,
    send,
)
from servicekit.errors import SightlineError

_EXIT_STATUS_SECONDS = 5.0
"""Maximum wait for the exit status after the process has closed its socket."""
_TERMINATION_SECONDS = 2.0
"""Maximum wait for the process to end, before each stronger signal."""


class Child:
    """A process that runs `edge.detect.worker`. Thread-safe; it serves one request at a time.

    Args:
        memory: file descriptor of the shared memory for images; None: there is none.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, memory: int | None) -> None:
        self._asking = threading.Lock()
        self._wire, theirs = socket.socketpair()
        with theirs:
            inherited = [theirs.fileno()] + ([] if memory is None else [memory])
            ends = [theirs.fileno(), -1 if memory is None else memory, os.getpid()]
            try:
                self._process = _start([str(end) for end in ends], inherited)
            except OSError:
                self._wire.close()
                raise

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def load(self, factory: bytes, timeout: float) -> LoadReply:
        """Construct the detector in the process.

        Args:
            factory: the pickled factory of the detector.
            timeout: seconds until the process is killed, > 0.

        Raises:
            vision.ModelError: the detector raised it.
            ModuleNotFoundError: the detector needs a module that is not installed.
            SightlineError: `DEVICE_CRASHED`, `DEVICE_HUNG`, or the error that the detector raised;
                `DEVICE_FAILED` if the detector raised another exception.
        """
        reply = self._ask(LoadRequest(factory), timeout)
        if isinstance(reply, LoadReply):
            return reply
        raise _loading_error(reply)

    def detect(self, request: DetectRequest, timeout: float) -> Reply:
        """Return the detector's reply for an image, which may be a failure.

        Args:
            request: the image, or its place in shared memory.
            timeout: seconds until the process is killed, > 0.

        Raises:
            SightlineError: `DEVICE_CRASHED`, `DEVICE_HUNG`.
        """
        return self._ask(request, timeout)

    def wait(self) -> str:
        """Wait for the end of the process, and describe it, such as "was ended by SIGSEGV"."""
        with suppress(ChildProcessError):  # other code has already waited for it
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            # Kill the rest of its process group before its pid is reaped and can be reused.
            self.kill()
        with suppress(OSError):  # a process that it started may hold the other end of the socket
            self._wire.shutdown(socket.SHUT_RDWR)
        return _ending(self._process.wait())

    def kill(self) -> None:
        """Kill the process and its process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the process: close its socket, then send SIGTERM, then SIGKILL."""
        with suppress(OSError):  # not connected: the process has ended
            self._wire.shutdown(socket.SHUT_RDWR)
        for force in (self._process.terminate, self.kill):
            try:
                self._process.wait(_TERMINATION_SECONDS)
            except subprocess.TimeoutExpired:
                force()
            else:
                return

    def close(self) -> None:
        """Close the socket. The process must have ended."""
        with self._asking:
            self._wire.close()

    def _ask(self, request: LoadRequest | DetectRequest, timeout: float) -> Reply:
        deadline = time.monotonic() + timeout
        try:
            with self._asking:
                send(self._wire, request, timeout)
                reply = receive(self._wire, deadline - time.monotonic())
        except TimeoutError as error:
            self.kill()
            text = f"the model's process gave no answer within {timeout:g} s and was killed"
            raise SightlineError(grpc.StatusCode.INTERNAL, "DEVICE_HUNG", text) from error
        except (EOFError, OSError) as error:
            raise SightlineError(
                grpc.StatusCode.INTERNAL, "DEVICE_CRASHED", f"the model's process {self._ending()}"
            ) from error
        if isinstance(reply, LoadRequest | DetectRequest):
            raise TypeError(f"the model's process must send a reply, got the request {reply!r}")
        return reply

    def _ending(self) -> str:
        try:
            return _ending(self._process.wait(_EXIT_STATUS_SECONDS))
        except subprocess.TimeoutExpired:  # it closed its socket, but still runs
            self.kill()
            return "stopped answering"


def pickled(factory: Callable[[], Detector]) -> bytes:
    """Return the factory of a detector, pickled for another process.

    Raises:
        ValueError: it cannot be pickled, or it is defined in `__main__`, which the other process
            does not import.
    """
    try:
        data = pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"factory must be a function of a module: {error}") from error
    if any(argument == "__main__" for _, argument, _ in pickletools.genops(data)):
        raise ValueError("factory must be in an importable module, but is defined in __main__")
    return data


def _start(ends: list[str], inherited: list[int]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)  # noqa: PTH109
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "edge.detect.worker", *ends],
        stdin=subprocess.DEVNULL,
        stdout=2,  # libraries print, and a program may read the node's stdout
        pass_fds=inherited,
        env={**os.environ, "PYTHONPATH": path},
        process_group=0,  # Ctrl-C must reach only the node, which sends requests until it closes
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-code}"


def _loading_error(reply: Reply) -> Exception:
    if isinstance(reply, DetectorFailure) and reply.kind == "ModelError":
        from vision import ModelError

        return ModelError(reply.reason, reply.message)
    if isinstance(reply, DetectorFailure) and reply.module:
        return ModuleNotFoundError(reply.message, name=reply.module)
    return reply_error(reply)
