"""Inference over HTTP, from a real service."""

import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.auth.services import answered
from tests.integration.console.conftest import World
from tests.integration.console.http import Answer, form
from tests.unit.inference_service.tiny_onnx import picture

RED, BLUE = picture(), picture((0, 0, 255))


def ask(world: World, *files: tuple[str, str, bytes], **fields: str) -> Answer:
    body, kind = form(*files, **fields)
    return world.browser("asker").post("/infer", body, content_type=kind)


def classes(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [result["detections"][0]["class_name"] for result in answer.json["results"]]


def test_a_form_with_images_is_answered_in_order(world: World) -> None:
    answer = ask(world, ("image", "a.png", RED), ("image", "b.png", BLUE))
    assert classes(answer) == ["red", "blue"]
    assert [result["image_id"] for result in answer.json["results"]] == ["a.png", "b.png"]
    assert answer.json["timing"]["total"] > 0
    assert answer.json["results"][0]["detections"][0]["confidence"] == 1


def test_curl_asks_in_one_line(world: World, tmp_path: Path) -> None:
    (tmp_path / "part.png").write_bytes(BLUE)
    done = subprocess.run(
        [
            *("curl", "-sS", "-F", "image=@part.png", f"http://{world.console.address}/infer"),
            *("-H", f"Authorization: Bearer {world.keys['asker']}"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert '"class_name":"blue"' in done.stdout, done.stderr


def test_an_image_may_be_the_whole_body(world: World) -> None:
    answer = world.browser("asker").post("/infer?model=colours", RED, content_type="image/png")
    assert classes(answer) == ["red"]


def test_fields_are_parameters(world: World) -> None:
    answer = ask(world, ("image", "a.png", RED), confidence_threshold="1", max_detections="1")
    assert answer.status == 200
    too_few = ask(world, ("image", "a.png", RED), max_detections="0")
    assert (too_few.status, too_few.json["field"]) == (400, "max_detections")
    unknown = ask(world, ("image", "a.png", RED), model="none")
    assert (unknown.status, unknown.json["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("files", "fields", "field"),
    [
        ([], {}, "image"),
        ([], {"image": "text"}, "image"),
        ([("picture", "a.png", RED)], {}, "picture"),
        ([("image", "a.png", RED)], {"modle": "colours"}, "modle"),
        ([("image", "a.png", RED)], {"top_k": "many"}, "top_k"),
        ([("image", "a.png", RED)], {"max_detections": "5000000000"}, "max_detections"),
        ([("image", "a.png", RED)], {"top_k": "-5000000000"}, "top_k"),
        ([("image", "a.png", RED)], {"mask_format": "png"}, "mask_format"),
    ],
)
def test_a_mistake_in_a_form_names_its_field(
    world: World, files: list[tuple[str, str, bytes]], fields: dict[str, str], field: str
) -> None:
    answer = ask(world, *files, **fields)
    assert (answer.status, answer.json["field"]) == (400, field), answer.json


@pytest.mark.parametrize("charset", ["punycode", "undefined"])
def test_a_charset_that_no_form_has_is_refused(world: World, charset: str) -> None:
    body, kind = form(("image", "a.png", RED), model="colours")
    answer = world.browser("asker").post("/infer", body, content_type=f"{kind}; charset={charset}")
    assert (answer.status, answer.json["field"]) == (400, "Content-Type"), answer.json


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (b"", "image/png", "IMAGE_EMPTY"),
        (b"no image", "image/png", "IMAGE_TYPE_UNSUPPORTED"),
        (b"{}", "application/json", "INVALID_FIELD"),
        (b"torn", "multipart/form-data; boundary=x", "INVALID_FIELD"),
        (b"torn", "multipart/form-data", "INVALID_FIELD"),
    ],
)
def test_a_body_that_is_no_image_is_refused(
    world: World, body: bytes, kind: str, reason: str
) -> None:
    answer = world.browser("asker").post("/infer", body, content_type=kind)
    assert (answer.status, answer.json["code"]) == (400, "INVALID_ARGUMENT")
    assert answer.reason == reason


def test_a_repeated_key_gets_the_first_answer(world: World) -> None:
    key, browser = str(uuid.uuid4()), world.browser("asker")
    first, second = (
        browser.post("/infer", RED, content_type="image/png", idempotency_key=key) for _ in "12"
    )
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert first.json["results"] == second.json["results"]
    other = browser.post("/infer", BLUE, content_type="image/png", idempotency_key=key)
    assert other.status in (400, 409), "another image under the same key"
    wrong = browser.post("/infer", RED, content_type="image/png", idempotency_key="one")
    assert wrong.status == 400


def test_the_deadline_of_the_header_is_that_of_the_call(world: World) -> None:
    answer = world.browser("asker").post(
        "/infer?model=slow", RED, content_type="image/png", sightline_timeout="0.3"
    )
    assert (answer.status, answer.json["code"]) == (504, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon", "3601", "inf"])
def test_a_deadline_that_is_none_is_refused(world: World, seconds: str) -> None:
    answer = world.browser().get("/stats", sightline_timeout=seconds)
    assert (answer.status, answer.json["field"]) == (400, "Sightline-Timeout")


def test_a_client_that_goes_cancels_the_call(world: World) -> None:
    """The service stops to work for a page that was closed."""
    before = answered(world.inference, "Infer").get("CANCELLED", 0)
    with world.browser("asker").sending("/infer?model=slow", RED, "image/png"):
        metrics = f"http://{world.inference.ready['metrics_address']}/metrics"
        until(lambda: "in_flight" in (text := _text(metrics)) and _running(text) == 1)
    until(lambda: answered(world.inference, "Infer").get("CANCELLED", 0) == before + 1)


def _running(metrics: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith("sightline_grpc_requests_in")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'method="Infer"' in line)


def _text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


def until(happened: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < ends_at
        time.sleep(0.05)
