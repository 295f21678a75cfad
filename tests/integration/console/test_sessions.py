"""Sessions: a cookie that scripts cannot read and that other sites cannot use."""

from http.cookies import SimpleCookie

import pytest

from tests.integration.console.conftest import World
from tests.integration.console.http import Browser


def begin(world: World, who: str) -> str:
    """Begin a session and return the header `Cookie` of it."""
    answer = world.browser(None).post("/session", {"credential": world.keys[who]})
    assert answer.status == 204, answer.body
    return answer.headers["set-cookie"].partition(";")[0]


def test_a_session_carries_the_credential(world: World) -> None:
    browser = Browser(world.console.address, {"Cookie": begin(world, "guard")})
    assert browser.get("/stats").json["by_edge_device"] == {"gate-1": 3}
    assert browser.get("/predictions?device_id=gate-2").reason == "DEVICE_NOT_ALLOWED"


def test_the_cookie_is_http_only_and_strict(world: World) -> None:
    answer = world.browser(None).post("/session", {"credential": world.keys["reader"]})
    (cookie,) = SimpleCookie(answer.headers["set-cookie"]).values()
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
    assert cookie["max-age"] == str(12 * 3600)
    assert answer.body == b""


@pytest.mark.parametrize("who", ["logger", "asker"])
def test_a_caller_without_the_scope_to_read_has_a_session_too(world: World, who: str) -> None:
    assert begin(world, who)


def test_a_header_comes_before_the_session(world: World) -> None:
    cookie = begin(world, "reader")
    answer = world.browser("logger").get("/stats", cookie=cookie)
    assert (answer.status, answer.reason) == (403, "SCOPE_MISSING")


def test_a_session_that_was_ended_is_forgotten(world: World) -> None:
    answer = world.browser(None).send("DELETE", "/session", None)
    assert answer.status == 204
    (cookie,) = SimpleCookie(answer.headers["set-cookie"]).values()
    assert (cookie.value, cookie["max-age"]) == ("", "0")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"credential": "slk_0123456789ab_wrong"}, 401, "API_KEY_UNKNOWN"),
        ({"credential": "nonsense"}, 401, "CREDENTIAL_KIND_NOT_ACCEPTED"),
        ({"credential": "a b"}, 400, "INVALID_FIELD"),
        ({"credential": ""}, 400, "INVALID_FIELD"),
        ({"credential": 7}, 400, "INVALID_FIELD"),
        ({}, 400, "INVALID_FIELD"),
        ([], 400, "INVALID_FIELD"),
        (b"torn", 400, "INVALID_FIELD"),
    ],
)
def test_a_credential_that_is_none_begins_no_session(
    world: World, body: object, status: int, reason: str
) -> None:
    answer = world.browser(None).post("/session", body)
    assert (answer.status, answer.reason) == (status, reason)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_page_of_another_site_begins_and_ends_no_session(world: World, method: str) -> None:
    body = {"credential": world.keys["reader"]}
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{1}"):
        answer = world.browser(None).send(method, "/session", body, origin=origin)
        assert (answer.status, answer.reason) == (403, "ORIGIN_NOT_ALLOWED")
    own = world.browser(None).send(
        method, "/session", body, origin=f"http://{world.console.address}"
    )
    assert own.status == 204
