"""One process with a detector in it: started, asked, and ended."""

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

_DYING_SECONDS = 5.0
_ENDING_SECONDS = 2.0


class Child:
    """A process that runs `edge.detect.worker`. Safe in threads, one question at a time.

    Args:
        memory: file descriptor of the shared memory for images; None: there is none.

    Raises:
        OSError: no process can be started.
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
        """Its process id."""
        return self._process.pid

    def load(self, factory: bytes, timeout: float) -> LoadReply:
        """Make the detector.

        Args:
            factory: pickled.
            timeout: seconds until the process is killed, > 0.

        Raises:
            vision.ModelError: the detector's own.
            ModuleNotFoundError: the detector needs a module that is not there.
            SightlineError: `DEVICE_CRASHED`, `DEVICE_HUNG`; or `DEVICE_FAILED`: whatever else the
                detector raises, or its own.
        """
        reply = self._ask(LoadRequest(factory), timeout)
        if isinstance(reply, LoadReply):
            return reply
        raise _loading_error(reply)

    def detect(self, request: DetectRequest, timeout: float) -> Reply:
        """Ask the detector about an image, and return its reply or how it failed.

        Args:
            request: the image.
            timeout: seconds until the process is killed, > 0.

        Raises:
            SightlineError: `DEVICE_CRASHED`, `DEVICE_HUNG`.
        """
        return self._ask(request, timeout)

    def wait(self) -> str:
        """Wait until the process has ended, and say how: "was ended by SIGSEGV"."""
        with suppress(ChildProcessError):  # somebody else has waited for it
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self.kill()  # what it has started; until it is waited for, nobody gets its number
        with suppress(OSError):  # a process that it started may hold the other end
            self._wire.shutdown(socket.SHUT_RDWR)
        return _how(self._process.wait())

    def kill(self) -> None:
        """End the process at once, and what it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the process: by its own doing, or a signal, or by force, whichever works first."""
        with suppress(OSError):  # not connected: it has ended
            self._wire.shutdown(socket.SHUT_RDWR)
        for force in (self._process.terminate, self.kill):
            try:
                self._process.wait(_ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                force()
            else:
                return

    def close(self) -> None:
        """Close the socket, once the process has ended."""
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
                grpc.StatusCode.INTERNAL, "DEVICE_CRASHED", f"the model's process {self._fate()}"
            ) from error
        if isinstance(reply, LoadRequest | DetectRequest):
            raise TypeError(f"the model's process must answer, and asked {reply!r}")
        return reply

    def _fate(self) -> str:
        try:
            return _how(self._process.wait(_DYING_SECONDS))
        except subprocess.TimeoutExpired:  # it has closed its socket, and lives: of no use
            self.kill()
            return "stopped answering"


def pickled(factory: Callable[[], Detector]) -> bytes:
    """Return a factory as bytes that another process can make a detector of.

    Raises:
        ValueError: it cannot be pickled, or is of the program's `__main__`, which is not imported
            there.
    """
    try:
        data = pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"factory must be a function of a module: {error}") from error
    if any(argument == "__main__" for _, argument, _ in pickletools.genops(data)):
        raise ValueError(
            "factory must be a function of a module that can be imported, not of the program itself"
        )
    return data


def _start(ends: list[str], inherited: list[int]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)  # noqa: PTH109
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "edge.detect.worker", *ends],
        stdin=subprocess.DEVNULL,
        stdout=2,  # libraries print: the node's stdout may be read by a program
        pass_fds=inherited,
        env={**os.environ, "PYTHONPATH": path},
        process_group=0,  # Ctrl-C is for the node, which asks for answers until it closes
    )


def _how(code: int) -> str:
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
