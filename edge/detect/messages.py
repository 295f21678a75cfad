"""What a detector's process and its owner say to each other, over a socket of their own.

Messages are pickled: both ends are one program of one user, and the socket has no name.
"""

import pickle
import socket
import struct
import time
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from edge.detect.base import DetectorResult
from servicekit.errors import FieldViolation, SightlineError

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Make the detector.

    Attributes:
        factory: pickled, and unpickled only where its failure can be answered.
    """

    factory: bytes


@dataclass(frozen=True, slots=True)
class DetectRequest:
    """Detect in one image.

    Attributes:
        shape: of the RGB uint8 array `[H, W, 3]`; None: the image is encoded.
        size: its bytes.
        content: the image; None: the shared memory holds it.
        path: of the image's file, in place of all that.
    """

    shape: tuple[int, ...] | None = None
    size: int = 0
    content: bytes | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class LoadReply:
    """The detector is ready."""

    name: str
    version: str
    provider: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectorReply:
    """What the detector says."""

    result: DetectorResult


@dataclass(frozen=True, slots=True)
class DetectorRefusal:
    """The detector raised a `SightlineError`: these are its parts."""

    code: int
    reason: str
    message: str
    violations: tuple[FieldViolation, ...]

    @classmethod
    def of(cls, error: SightlineError) -> "DetectorRefusal":
        """Take an error apart: its class may be known in the model's process alone."""
        return cls(error.code.value[0], error.reason, error.message, error.violations)

    def error(self) -> SightlineError:
        """Return the same error again."""
        (code,) = (each for each in grpc.StatusCode if each.value[0] == self.code)
        return SightlineError(code, self.reason, self.message, violations=self.violations)


@dataclass(frozen=True, slots=True)
class DetectorFailure:
    """The detector raised anything else.

    Attributes:
        kind: the name of the exception's class.
        message: the exception's.
        reason: of a `vision.ModelError`; else empty.
        module: that could not be imported; else empty.
    """

    kind: str
    message: str
    reason: str = ""
    module: str = ""


def reply_error(reply: "Reply") -> SightlineError:
    """Return what an image's reply that is not `DetectorReply` means to the caller."""
    if isinstance(reply, DetectorRefusal):
        return reply.error()
    said = f"{reply.kind}: {reply.message}" if isinstance(reply, DetectorFailure) else repr(reply)
    return SightlineError(grpc.StatusCode.INTERNAL, "DEVICE_FAILED", f"the model failed: {said}")


Request: TypeAlias = LoadRequest | DetectRequest
Reply: TypeAlias = LoadReply | DetectorReply | DetectorRefusal | DetectorFailure


def send(wire: socket.socket, message: Request | Reply, timeout: float | None = None) -> None:
    """Send one message.

    Args:
        wire: a stream socket.
        message: what to send.
        timeout: seconds it may take; None: as long as it takes.

    Raises:
        TimeoutError: it took longer; the socket is of no more use.
        OSError: the other end is gone.
    """
    body = pickle.dumps(message)
    wire.settimeout(timeout)
    wire.sendall(_LENGTH.pack(len(body)) + body)


def receive(wire: socket.socket, timeout: float | None = None) -> Request | Reply:
    """Return the next message.

    Args:
        wire: a stream socket.
        timeout: seconds it may take; None: as long as it takes.

    Raises:
        TimeoutError: it took longer; the socket is of no more use.
        EOFError: the other end is gone.
        OSError: the same, noticed otherwise.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    (length,) = _LENGTH.unpack(_read(wire, _LENGTH.size, deadline))
    message: Request | Reply = pickle.loads(_read(wire, length, deadline))  # noqa: S301 - see above
    return message


def _read(wire: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        wire.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
        taken = wire.recv_into(view)
        if not taken:
            raise EOFError("the other end is gone")
        view = view[taken:]
    return data
