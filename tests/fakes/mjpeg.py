"""A network camera: MJPEG over HTTP, as many real ones have it, that can be cut and come back."""

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import PIL.Image

_HEAD = (
    b"HTTP/1.0 200 OK\r\n"
    b"Content-Type: multipart/x-mixed-replace; boundary=frame\r\n"
    b"Connection: close\r\n\r\n"
)


class MjpegCamera:
    """Sends every client the same grey picture, brighter each time, until it is cut off."""

    def __init__(self, frames_per_second: float = 50.0) -> None:
        self._pause = 1 / frames_per_second
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/camera.mjpg"
        self._clients: list[socket.socket] = []
        self._lock = threading.Lock()
        self._down = False
        self._frozen = threading.Event()
        self._ended = threading.Event()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drops every client, and refuses new ones until `restore`."""
        with self._lock:
            self._down = True
            for client in self._clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
            self._clients.clear()

    def restore(self) -> None:
        with self._lock:
            self._down = False
            self._frozen.clear()

    def freeze(self) -> None:
        """Leaves the clients connected, and sends them nothing more until `restore`."""
        self._frozen.set()

    def close(self) -> None:
        self._ended.set()
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._down:
                    client.close()
                    continue
                self.connections += 1
                self._clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            client.recv(65536)
            client.sendall(_HEAD)
            level = 0
            while not self._ended.wait(self._pause):
                if self._frozen.is_set():
                    continue
                level = (level + 1) % 256
                client.sendall(_part(level))


def _part(level: int) -> bytes:
    out = io.BytesIO()
    pixels = np.full((48, 64, 3), (level, 0, 255 - level), np.uint8)
    PIL.Image.fromarray(pixels).save(out, "JPEG", quality=95)
    picture = out.getvalue()
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
    return head.encode() + picture + b"\r\n"


@contextmanager
def camera(frames_per_second: float = 50.0) -> Iterator[MjpegCamera]:
    made = MjpegCamera(frames_per_second)
    try:
        yield made
    finally:
        made.close()
