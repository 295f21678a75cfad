"""The messages between a detector's process and its owner, and their framing on a socket.

Messages are pickled: both ends run the same program for the same user, and the socket has no name
that other programs could connect to.
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
    """A request to construct the detector.

    Attributes:
        factory: the pickled factory, which is unpickled where its failure can be reported.
    """

    factory: bytes


@dataclass(frozen=True, slots=True)
class DetectRequest:
    """A request to run the detector on one image.

    Attributes:
        shape: shape of the RGB uint8 array `[H, W, 3]`; None: the image is encoded.
        size: size of the image in bytes.
        content: the image; None: the shared memory holds it.
        path: path of the image's file, in place of the other attributes; None: there is none.
    """

    shape: tuple[int, ...] | None = None
    size: int = 0
    content: bytes | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class LoadReply:
    """The reply to `LoadRequest`: the attributes of the detector, which is ready."""

    name: str
    version: str
    provider: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectorReply:
    """The reply to `DetectRequest`: the detector's result."""

    result: DetectorResult


@dataclass(frozen=True, slots=True)
class DetectorRefusal:
    """The reply if the detector raised a `SightlineError`: the parts of the error."""

    code: int
    reason: str
    message: str
    violations: tuple[FieldViolation, ...]

    @classmethod
    def of(cls, error: SightlineError) -> "DetectorRefusal":
        """Return the parts of an error, whose class may exist only in the detector's process."""
        return cls(error.code.value[0], error.reason, error.message, error.violations)

    def error(self) -> SightlineError:
        """Return the error that has these parts."""
        (code,) = (status for status in grpc.StatusCode if status.value[0] == self.code)
        return SightlineError(code, self.reason, self.message, violations=self.violations)


@dataclass(frozen=True, slots=True)
class DetectorFailure:
    """The reply if the detector raised any other exception.

    Attributes:
        kind: name of the exception's class.
        message: message of the exception.
        reason: reason of a `vision.ModelError`; else empty.
        module: name of a module that could not be imported; else empty.
    """

    kind: str
    message: str
    reason: str = ""
    module: str = ""


def reply_error(reply: "Reply") -> SightlineError:
    """Return the error to raise for a reply that is not a `DetectorReply`."""
    if isinstance(reply, DetectorRefusal):
        return reply.error()
    cause = f"{reply.kind}: {reply.message}" if isinstance(reply, DetectorFailure) else repr(reply)
    return SightlineError(grpc.StatusCode.INTERNAL, "DEVICE_FAILED", f"the model failed: {cause}")


Request: TypeAlias = LoadRequest | DetectRequest
Reply: TypeAlias = LoadReply | DetectorReply | DetectorRefusal | DetectorFailure


def send(wire: socket.socket, message: Request | Reply, timeout: float | None = None) -> None:
    """Send one message.

    Args:
        wire: a stream socket.
        message: the message.
        timeout: seconds to wait; None: no limit.

    Raises:
        TimeoutError: the timeout has passed; the socket cannot be used any more.
        OSError: the other end is closed.
    """
    body = pickle.dumps(message)
    wire.settimeout(timeout)
    wire.sendall(_LENGTH.pack(len(body)) + body)


def receive(wire: socket.socket, timeout: float | None = None) -> Request | Reply:
    """Return the next message.

    Args:
        wire: a stream socket.
        timeout: seconds to wait; None: no limit.

    Raises:
        TimeoutError: the timeout has passed; the socket cannot be used any more.
        EOFError: the other end is closed.
        OSError: the connection is broken.
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
        received = wire.recv_into(view)
        if not received:
            raise EOFError("the other end of the socket is closed")
        view = view[received:]
    return data
