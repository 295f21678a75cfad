"""A DNS server of one name, as a cluster's DNS answers for a headless Service."""

import socket
import struct
import threading
from types import TracebackType
from typing import Self

_HEADER = struct.Struct(">HHHHHH")
_ANSWER, _AUTHORITATIVE = 0x8000, 0x0400
_TYPE_A, _CLASS_IN = 1, 1
_TTL_SECONDS = 0


class NameServer:
    """Answers every question with the same addresses, in their order, until it is closed.

    gRPC asks it for a target such as `dns://127.0.0.1:5353/inference:50052`: see `target`.
    """

    def __init__(self) -> None:
        self.addresses: tuple[str, ...] = ()
        """IPv4 addresses of the name."""
        self._ended = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def target(self, port: int) -> str:
        """Return a target of gRPC whose name is resolved here."""
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/replicas.test:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        self._socket.sendto(b"", self._socket.getsockname())  # wakes the thread
        self._thread.join()
        self._socket.close()

    def _answer(self) -> None:
        while True:
            question, asker = self._socket.recvfrom(512)
            if self._ended:
                return
            self._socket.sendto(reply(question, self.addresses), asker)


def reply(question: bytes, addresses: tuple[str, ...]) -> bytes:
    """Return the answer to a packet with one question; questions for IPv6 get no address."""
    number = _HEADER.unpack_from(question)[0]
    end = question.index(b"\0", _HEADER.size) + 5  # the name, its type and class
    (kind,) = struct.unpack_from(">H", question, end - 4)
    found = addresses if kind == _TYPE_A else ()
    head = _HEADER.pack(number, _ANSWER | _AUTHORITATIVE, 1, len(found), 0, 0)
    name = b"\xc0\x0c"  # a pointer to the question's
    fields = struct.pack(">HHIH", _TYPE_A, _CLASS_IN, _TTL_SECONDS, 4)
    records = [name + fields + socket.inet_aton(address) for address in found]
    return head + question[_HEADER.size : end] + b"".join(records)
