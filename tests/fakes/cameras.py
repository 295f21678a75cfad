"""Fake network cameras (HTTP and RTSP) whose network can be cut and restored."""

import io
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import numpy as np
import PIL.Image

_HEAD = (
    b"HTTP/1.0 200 OK\r\n"
    b"Content-Type: multipart/x-mixed-replace; boundary=frame\r\n"
    b"Connection: close\r\n\r\n"
)
_RTP_JPEG = 26  # payload type, RFC 3551
_RTP_CLOCK = 90_000
_SDP = """v=0\r
o=- 0 0 IN IP4 127.0.0.1\r
s=camera\r
t=0 0\r
m=video 0 RTP/AVP 26\r
c=IN IP4 0.0.0.0\r
a=control:track1\r
"""


class NetworkCamera:
    """A camera that sends all clients one image, a little redder each time, until it is cut."""

    scheme = ""

    def __init__(self, frames_per_second: float = 50.0) -> None:
        self._pause = 1 / frames_per_second
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{self.scheme}://127.0.0.1:{self._listener.getsockname()[1]}/camera.mjpg"
        self._clients: list[socket.socket] = []
        self._lock = threading.Lock()
        self._down = False
        self._frozen = threading.Event()
        self._ended = threading.Event()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop every client, and refuse new ones until `restore`."""
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
        """Keep the clients connected, and send them nothing until `restore`."""
        self._frozen.set()

    def close(self) -> None:
        self._ended.set()
        self.cut()
        self._listener.close()

    def serve(self, client: socket.socket) -> None:
        """Serve one client until it or the camera is gone."""
        raise NotImplementedError

    def pictures(self) -> Iterator[bytes]:
        """Yield JPEGs at the camera's rate until it is closed."""
        level = 0
        while not self._ended.wait(self._pause):
            if not self._frozen.is_set():
                level = (level + 1) % 256
                yield _jpeg(level)

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
            self.serve(client)


class MjpegCamera(NetworkCamera):
    """MJPEG over HTTP."""

    scheme = "http"

    def serve(self, client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(_HEAD)
        for picture in self.pictures():
            size = len(picture)
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {size}\r\n\r\n"
            client.sendall(head.encode() + picture + b"\r\n")


class RtspCamera(NetworkCamera):
    """RTSP (RFC 2326) with JPEG in RTP (RFC 2435) in the same connection."""

    scheme = "rtsp"

    def serve(self, client: socket.socket) -> None:
        with client.makefile("rb") as lines:
            while (method := self._answer(client, lines)) != "PLAY":
                if not method:
                    return
            for number, picture in enumerate(self.pictures()):
                packet = _rtp(number, int(number * self._pause * _RTP_CLOCK), picture)
                client.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)

    def _answer(self, client: socket.socket, lines: IO[bytes]) -> str:
        """Answer one request and return its method; empty if the client is gone."""
        request = lines.readline().decode().split()
        headers = {}
        while (line := lines.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if not request:
            return ""
        method = request[0]
        reply = {
            "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
            "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n",
            "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
        }.get(method, "Session: 1\r\n")
        body = _SDP if method == "DESCRIBE" else ""
        client.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\n{reply}\r\n{body}".encode())
        return method


def _jpeg(level: int) -> bytes:
    out = io.BytesIO()
    pixels = np.full((48, 64, 3), (level, 0, 255 - level), np.uint8)
    PIL.Image.fromarray(pixels).save(out, "JPEG", quality=95, subsampling="4:2:0")
    return out.getvalue()


def _rtp(number: int, timestamp: int, jpeg: bytes) -> bytes:
    """Return one image as one packet: its tables and its scan, without the implied headers."""
    tables, at = b"", 2
    while jpeg[at : at + 2] != b"\xff\xda":  # up to the scan
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at : at + 2] == b"\xff\xdb":
            segment = jpeg[at + 4 : at + 2 + length]
            tables += b"".join(segment[i + 1 : i + 65] for i in range(0, len(segment), 65))
        at += 2 + length
    scan = jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") : -2]
    rtp = struct.pack("!BBHII", 0x80, 0x80 | _RTP_JPEG, number & 0xFFFF, timestamp, 1)
    header = struct.pack("!IBBBB", 0, 1, 255, 64 // 8, 48 // 8)  # 4:2:0, own tables
    return rtp + header + struct.pack("!BBH", 0, 0, len(tables)) + tables + scan


@contextmanager
def camera(
    kind: type[NetworkCamera] = MjpegCamera, frames_per_second: float = 50.0
) -> Iterator[NetworkCamera]:
    fake = kind(frames_per_second)
    try:
        yield fake
    finally:
        fake.close()
