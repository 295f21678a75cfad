"""Access to each route of the console by scope, and to the devices of other callers."""

import uuid

import pytest

from tests.integration.console.conftest import World
from tests.integration.console.http import form
from tests.unit.inference_service.tiny_onnx import picture

SPOOL = str(uuid.uuid4())
LOG = (
    *("/stats", "/predictions", "/devices", "/ledger", "/gaps", "/rejections"),
    *("/series", "/frame", "/confidence", "/models"),
)
"""Routes that read the log."""


def asked(world: World, who: str | None, path: str) -> tuple[int, str]:
    """Return status and reason of a request; the reason is empty for an answer."""
    browser = world.browser(who)
    if path == "/infer":
        body, kind = form(("image", "a.png", picture()))
        answer = browser.post(path, body, content_type=kind)
    else:
        answer = browser.get(path)
    return answer.status, "" if answer.status == 200 else answer.reason


@pytest.mark.parametrize("path", LOG)
@pytest.mark.parametrize(
    ("who", "status", "reason"),
    [
        ("everyone", 200, ""),
        ("reader", 200, ""),
        ("logger", 403, "SCOPE_MISSING"),
        ("asker", 403, "SCOPE_MISSING"),
        (None, 401, "CREDENTIAL_MISSING"),
    ],
)
def test_the_log_is_for_readers(
    world: World, path: str, who: str | None, status: int, reason: str
) -> None:
    assert asked(world, who, path) == (status, reason)


@pytest.mark.parametrize("path", ["/infer", "/models/loaded"])
@pytest.mark.parametrize(
    ("who", "status"), [("everyone", 200), ("asker", 200), ("reader", 403), (None, 401)]
)
def test_models_are_for_those_who_may_ask(
    world: World, path: str, who: str | None, status: int
) -> None:
    assert asked(world, who, path)[0] == status


@pytest.mark.parametrize("path", LOG)
def test_a_device_of_another_is_refused(world: World, path: str) -> None:
    for name in ("device_id", "edge_device_id"):
        assert asked(world, "guard", f"{path}?{name}=gate-2") == (403, "DEVICE_NOT_ALLOWED")
        assert asked(world, "guard", f"{path}?{name}=gate-1") == (200, "")


def test_a_single_sequence_of_another_is_refused(world: World) -> None:
    for who, device, expected in (
        ("guard", "gate-2", (403, "DEVICE_NOT_ALLOWED")),
        ("guard", "gate-1", (404, "NOT_COMMITTED")),
        ("logger", "gate-1", (403, "SCOPE_MISSING")),
        (None, "gate-1", (401, "CREDENTIAL_MISSING")),
    ):
        assert asked(world, who, f"/predictions/{device}/{SPOOL}/1") == expected


def test_without_a_filter_a_caller_sees_its_own_devices_only(world: World) -> None:
    assert world.browser("guard").get("/stats").json["by_edge_device"] == {"gate-1": 3}
    found = world.browser("guard").get("/predictions").json["predictions"]
    assert {one["device_id"] for one in found} == {"gate-1"}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("Bearer wrong", "CREDENTIAL_KIND_NOT_ACCEPTED"),
        ("Basic YTpi", "CREDENTIAL_MALFORMED"),
        ("Bearer \xe9", "CREDENTIAL_MALFORMED"),
    ],
)
def test_a_wrong_credential_is_refused(world: World, header: str, reason: str) -> None:
    answer = world.browser(None).get("/stats", authorization=header)
    assert (answer.status, answer.reason) == (401, reason)
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/", "/health", "/healthz", "/readyz", "/openapi.json", "/docs"])
def test_nothing_of_the_log_is_on_the_open_routes(world: World, path: str) -> None:
    answer = world.browser(None).get(path)
    assert answer.status in (200, 404)
    assert b"gate-1" not in answer.body
