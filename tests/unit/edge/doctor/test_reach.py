"""Sockets and TLS with real faults."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge.doctor.reach import ends_soon, speaks_tls, unreachable

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@contextmanager
def listener(family: socket.AddressFamily, place: object) -> Iterator[socket.socket]:
    with socket.socket(family) as made:
        made.bind(place)  # type: ignore[arg-type]
        made.listen()
        yield made


def test_what_listens_can_be_reached(tmp_path: Path) -> None:
    with listener(socket.AF_INET, ("127.0.0.1", 0)) as made:
        assert unreachable(f"127.0.0.1:{made.getsockname()[1]}", 5) is None
    with listener(socket.AF_UNIX, str(tmp_path / "s")):
        assert unreachable(f"unix:{tmp_path}/s", 5) is None
        assert unreachable(f"unix://{tmp_path}/s", 5) is None


def test_nothing_listens(tmp_path: Path) -> None:
    with listener(socket.AF_INET, ("127.0.0.1", 0)) as made:
        port = made.getsockname()[1]
    trouble = unreachable(f"127.0.0.1:{port}", 5)
    assert trouble is not None
    assert trouble.message == f"nothing listens at 127.0.0.1:{port}"
    trouble = unreachable(f"unix:{tmp_path}/none", 5)
    assert trouble is not None
    assert "nothing listens" in trouble.message


def test_a_name_that_nobody_knows() -> None:
    trouble = unreachable("no-such-host.invalid:1", 5)
    assert trouble is not None
    assert "is not known" in trouble.message
    assert "DNS" in trouble.action


def test_a_host_that_does_not_react() -> None:
    # A full backlog drops further connections, as a firewall does.
    with socket.socket() as made, socket.socket() as first, socket.socket() as second:
        made.bind(("127.0.0.1", 0))
        made.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(made.getsockname())
        trouble = unreachable(f"127.0.0.1:{made.getsockname()[1]}", 0.3)
    assert trouble is not None
    assert "does not answer within 0.3 s" in trouble.message
    assert "firewall" in trouble.action


def test_a_plain_server_does_not_speak_tls() -> None:
    with listener(socket.AF_INET, ("127.0.0.1", 0)) as made:

        def answer() -> None:
            with made.accept()[0] as connection:
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert not speaks_tls(f"127.0.0.1:{made.getsockname()[1]}", 5)
        thread.join()


@pytest.mark.parametrize(("days", "soon"), [(-1, True), (0, True), (13, True), (14, False)])
def test_a_certificate_should_be_renewed_two_weeks_before_its_end(days: int, soon: bool) -> None:
    assert ends_soon(NOW + timedelta(days=days), NOW) is soon
