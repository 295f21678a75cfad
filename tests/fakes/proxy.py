"""A proxy that passes nothing on, and keeps what it was sent."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables that name a proxy to gRPC. Python's HTTP client and FFmpeg read the last two."""


class RecordingProxy:
    """A listener that keeps the first bytes of each connection, and refuses it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """Return an environment whose variables name this proxy, and spare no host."""
        clean = {k: v for k, v in os.environ.items() if not k.lower().startswith("no_")}
        url = f"http://someone:pw@{self.address}"
        return {
            **clean,
            **dict.fromkeys((*VARIABLES, "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"), url),
            "GRPC_ADDRESS_HTTP_PROXY": self.address,
            "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": "127.0.0.0/8,::1/128",
        }

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, suppress(OSError):
                client.settimeout(5)
                self.requests.append(client.recv(4096))
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@contextmanager
def recording_proxy() -> Iterator[RecordingProxy]:
    proxy = RecordingProxy()
    try:
        yield proxy
    finally:
        proxy.close()
