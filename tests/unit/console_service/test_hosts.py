"""Host names and origins: a page on the internet reaches the console by neither."""

import pytest

from console_service.hosts import is_allowed_host, is_allowed_origin

NAMES = ("console.example", "*.plant.example")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8080", "10.1.2.3:80", "[::1]:8080", "[fe80::1]", "localhost"),
        *("LOCALHOST:8080", "a.localhost", "console.example:8443", "Console.Example."),
        "line4.plant.example",
    ],
)
def test_addresses_and_known_names_are_allowed(host: str) -> None:
    assert is_allowed_host(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "console.example.evil.example", "plant.example", "xplant.example"),
        *("localhost.evil.example", "127.0.0.1.evil.example", "[::1", "a@evil.example"),
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert not is_allowed_host(host, NAMES)


def test_a_star_allows_every_name() -> None:
    assert is_allowed_host("any.example", ["*"])


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("https://wall.example", "127.0.0.1:8080", True),
        ("http://127.0.0.1:9090", "127.0.0.1:8080", False),
        ("https://evil.example", "127.0.0.1:8080", False),
        ("null", "127.0.0.1:8080", False),
        ("null", "", False),
        ("", "", False),
        ("http://[", "127.0.0.1:8080", False),
    ],
)
def test_a_page_changes_only_what_is_its_own(origin: str, host: str, allowed: bool) -> None:
    assert is_allowed_origin(origin, host, ["https://wall.example"]) is allowed
