"""The console of `sightline up`: at its usual port, at any other, or not at all."""

import socket
from collections.abc import Iterator

import pytest

from servicekit.terminal import CommandError
from sightline.cli import serve


@pytest.fixture
def _taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make something listen at the usual address of the console."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(serve, "_CONSOLE", f"127.0.0.1:{listening.getsockname()[1]}")
        yield


@pytest.mark.usefixtures("_taken")
def test_a_taken_usual_port_does_not_keep_the_services_from_starting() -> None:
    assert serve._console_address(None) == "127.0.0.1:0"


def test_a_free_usual_port_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_CONSOLE", "127.0.0.1:0")
    assert serve._console_address(None) == "127.0.0.1:0"
    assert serve._console_address("127.0.0.1:1234") == "127.0.0.1:1234"
    assert serve._console_address("") == ""


def test_an_installation_without_the_extra_has_no_console(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(serve._NEEDS, "console_service", ("console", ("no_such_package",)))
    assert serve._console_address(None) == ""
    said = capsys.readouterr().err
    assert "no console: console_service needs no_such_package: pip install" in said
    with pytest.raises(CommandError, match=r"sightline-vision\[console\]"):
        serve._console_address("127.0.0.1:0")
