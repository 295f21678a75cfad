"""Tests that the relay treats connections as its network requires."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from examples.demo.relay import CUT, SILENT, SOUND, Network, Relay

PATIENCE = 20.0
MOMENT = 0.2


class Echo:
    """A service that echoes its input, and then half-closes the connection."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)
            connection.sendall(b"end")


@pytest.fixture
def relay() -> Iterator[Relay]:
    with closing(Echo()) as echo, Relay(echo.address) as relay:
        yield relay


def connect(relay: Relay) -> socket.socket:
    host, port = relay.address.split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(PATIENCE)
    return connection


def echoed(connection: socket.socket, data: bytes = b"x") -> bytes:
    connection.sendall(data)
    return connection.recv(1 << 16)


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(MOMENT)
    with suppress(TimeoutError):
        echoed(connection)
        return False
    return True


def test_a_sound_network_passes_everything_on(relay: Relay) -> None:
    with connect(relay) as connection:
        assert echoed(connection) == b"x"
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b"end"
        assert connection.recv(10) == b""


def test_a_slow_network_takes_its_time(relay: Relay) -> None:
    with connect(relay) as connection, relay.being(Network(delay=MOMENT, jitter=0.05)):
        before = time.monotonic()
        assert echoed(connection) == b"x"
        assert time.monotonic() - before >= 2 * MOMENT


def test_a_narrow_network_takes_longer_for_more(relay: Relay) -> None:
    with connect(relay) as connection, relay.being(Network(bytes_per_second=10_000)):
        before = time.monotonic()
        connection.sendall(bytes(3000))
        received = 0
        while received < 3000:
            received += len(connection.recv(3000))
        assert time.monotonic() - before >= 0.3


def test_a_cut_network_resets_connections_old_and_new(relay: Relay) -> None:
    with connect(relay) as old:
        assert echoed(old) == b"x"
        with relay.being(CUT):
            with pytest.raises(ConnectionResetError):
                old.recv(10)
            with connect(relay) as new, pytest.raises(OSError, match=r"reset|Broken pipe"):
                echoed(new)
        with connect(relay) as later:
            assert echoed(later) == b"x"


def test_a_silent_network_forgets_what_was_open(relay: Relay) -> None:
    with connect(relay) as old:
        assert echoed(old) == b"x"
        with relay.being(SILENT), connect(relay) as new:
            assert is_silent(old)
            assert is_silent(new)
            relay.become(SOUND)
            assert is_silent(old)
            assert is_silent(new)
            with connect(relay) as later:
                assert echoed(later) == b"x"


def test_a_half_closed_network_goes_one_way(relay: Relay) -> None:
    with connect(relay) as connection:
        assert echoed(connection) == b"x"
        with relay.being(Network(ends_requests=True)):
            assert connection.recv(10) == b"end"
    with connect(relay) as connection:
        assert echoed(connection) == b"x"
        with relay.being(Network(ends_answers=True)):
            assert connection.recv(10) == b""
            connection.sendall(b"still taken")
