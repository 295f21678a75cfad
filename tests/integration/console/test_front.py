"""Before and after each route: hosts, sizes, headers, limits, drains."""

import http.client
import json
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sightline.cli.processes import ServiceProcess
from tests.integration.console.conftest import World, targets
from tests.integration.console.http import Browser
from tests.unit.inference_service.tiny_onnx import picture

MakeConsole = Callable[..., ServiceProcess]


def test_every_answer_has_the_headers_of_a_careful_server(world: World) -> None:
    for path in ("/stats", "/nothing", "/health", "/docs", "/static/none.js"):
        headers = world.browser(None).get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
        assert headers["server-timing"].rpartition("total;dur=")[2]


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/stats", "/healthz", "/stats?limt=1"])
def test_a_head_is_that_of_the_get(world: World, path: str) -> None:
    head, whole = (world.browser().send(method, path, None) for method in ("HEAD", "GET"))
    assert (head.status, head.body) == (whole.status, b"")
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.body))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *(("PUT", "/stats", "GET, HEAD"), ("TRACE", "/static/app.js", "GET, HEAD")),
        *(("GET", "/infer", "POST"), ("HEAD", "/live", "GET")),
    ],
)
def test_a_method_that_is_none_here_says_which_are(
    world: World, method: str, path: str, allowed: str
) -> None:
    answer = world.browser().send(method, path, None)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)


def test_files_of_the_page_are_asked_for_anew_after_an_upgrade(world: World) -> None:
    for path in ("/", "/docs", "/static/app.js", "/apidocs/rapidoc-min.js"):
        answer = world.browser(None).get(path)
        assert answer.headers["cache-control"] == "no-cache"
    etag = world.browser(None).get("/static/app.js").headers["etag"]
    known = world.browser(None).get("/static/app.js", if_none_match=etag)
    assert (known.status, known.body, known.headers["cache-control"]) == (304, b"", "no-cache")


def test_a_request_with_two_lengths_is_refused_and_ends_the_connection(world: World) -> None:
    """Otherwise the console reads the next request out of what a proxy takes for the body."""
    with connected(world.console.address) as sent:
        sent.sendall(
            b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\n"
            b"Host: localhost\r\n\r\n"
        )
        answers = b"".join(iter(lambda: sent.recv(65536), b""))
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1") == 1


def test_the_timing_says_where_the_time_went(world: World) -> None:
    timing = world.browser().get("/stats").headers["server-timing"]
    names = [part.partition(";")[0] for part in timing.split(", ")]
    assert names == ["wait", "ingest", "json", "total"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example"])
def test_a_foreign_name_of_the_console_is_refused(world: World, host: str) -> None:
    answer = world.browser().get("/stats", host=host)
    assert (answer.status, answer.reason) == (403, "HOST_NOT_ALLOWED")
    assert world.browser().get("/stats", host="localhost:1").status == 200


def test_origins_that_are_allowed_read_answers_and_no_others(make_console: MakeConsole) -> None:
    flags = ["--cors-origins", "https://wall.example", "--allowed-hosts", "console.example"]
    browser = Browser(make_console(*targets("127.0.0.1:1"), *flags).address, {})
    allowed = browser.get("/health", origin="https://wall.example", host="console.example")
    assert allowed.headers["access-control-allow-origin"] == "https://wall.example"
    assert "access-control-allow-credentials" not in allowed.headers
    other = browser.get("/health", origin="https://evil.example")
    assert "access-control-allow-origin" not in other.headers
    preflight = browser.send(
        "OPTIONS",
        "/infer",
        None,
        origin="https://wall.example",
        access_control_request_method="POST",
        access_control_request_headers="authorization",
    )
    assert preflight.status == 200


def test_a_request_that_is_too_large_is_refused(world: World, make_console: MakeConsole) -> None:
    services = targets(world.ingest.address, world.inference.address)
    made = make_console(*services, "--max-request-bytes", "2000")
    browser = Browser(made.address, {})
    answer = browser.post("/infer", b"x" * 2001, content_type="image/png")
    assert (answer.status, answer.reason) == (413, "REQUEST_TOO_LARGE")
    # Without a length, as `curl -T -` sends.
    with connected(made.address) as sent:
        sent.sendall(
            _upload(world, "asker")
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"3e8\r\n"
            + b"x" * 1000
            + b"\r\n"
        )
        sent.sendall(b"3e9\r\n" + b"x" * 1001 + b"\r\n")
        assert sent.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert browser.get("/healthz").status == 200


def test_a_request_that_stalls_is_ended(world: World, make_console: MakeConsole) -> None:
    """Such connections would take all that there are, and such bodies all places."""
    services = targets(world.ingest.address, world.inference.address)
    made = make_console(*services, "--receive-timeout-seconds", "1")
    healthz = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    with ExitStack() as stack:
        # What is sent first, and then again and again.
        bodies = [
            (_begun(stack, made, _upload(world, "asker") + b"Content-Length: 999\r\n\r\nx"), part)
            for part in (b"", b"y")
        ]
        heads = [
            (_begun(stack, made, first), part)
            for first, part in [
                *((b"", b""), (healthz, b""), (healthz + b"X: ", b"y")),
                (healthz + b"\r\n" + healthz + b"X: ", b"y"),
            ]
        ]
        for connection, part in bodies:
            answer = _answered(connection, part)
            assert answer.startswith(b"HTTP/1.1 504 ")
            assert b"REQUEST_STALLED" in answer
        for connection, part in heads[:3]:
            assert _answered(connection, part) == b""
        answer = _answered(*heads[3])
        assert answer.startswith(b"HTTP/1.1 200 "), "the request before it is answered"
        assert answer.count(b"HTTP/1.1") == 1


def test_who_sends_slowly_takes_no_place_of_those_who_are_new(
    world: World, make_console: MakeConsole
) -> None:
    services = targets(world.ingest.address, world.inference.address)
    made = make_console(*services, "--max-requests", "1")  # a place for strangers, and four wait
    head = b"POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx"
    with ExitStack() as stack:
        for _ in range(6):
            _begun(stack, made, head)
        reader = Browser(made.address, {"Authorization": f"Bearer {world.keys['reader']}"})
        assert reader.get("/stats").status == 200
    body = b"x" * 9000
    assert Browser(made.address, {}).post("/session", body).status == 413


def test_one_request_too_many_is_refused(world: World, make_console: MakeConsole) -> None:
    made = make_console(
        *targets(world.ingest.address, world.inference.address), "--max-requests", "1"
    )
    browser = Browser(made.address, {"Authorization": f"Bearer {world.keys['asker']}"})
    statuses: list[int] = []

    def ask() -> None:
        with suppress(ConnectionError, http.client.HTTPException):  # of a console that has ended
            answer = browser.post("/infer?model=slow", picture(), content_type="image/png")
            statuses.append(answer.status)

    threads = [threading.Thread(target=ask) for _ in range(7)]  # one, four that wait, two more
    for thread in threads:
        thread.start()
    ends_at = time.monotonic() + 30
    while len(statuses) < 2:
        assert time.monotonic() < ends_at
        time.sleep(0.02)
    assert statuses[:2] == [429, 429]
    assert browser.get("/healthz").status == 200
    made.kill()
    for thread in threads:
        thread.join()


def test_a_flood_of_bad_credentials_takes_no_place_of_those_who_are_known(world: World) -> None:
    """The service delays its answers to the console's one connection."""
    reader = world.browser("reader")
    assert reader.get("/stats").status == 200
    refused: list[str] = []

    def flood(number: int) -> None:
        for attempt in range(40):
            wrong = {"Authorization": f"Bearer {number}.{attempt}"}
            refused.append(Browser(world.console.address, wrong).get("/stats").reason)
            if "CONSOLE_BUSY" in refused:
                return

    threads = [threading.Thread(target=flood, args=[number]) for number in range(60)]
    for thread in threads:
        thread.start()
    ends_at = time.monotonic() + 60
    while "CONSOLE_BUSY" not in refused:
        assert time.monotonic() < ends_at
        assert reader.get("/stats").status == 200
    for thread in threads:
        thread.join()
    assert reader.get("/stats").status == 200


def test_sigterm_lets_a_request_end(world: World, make_console: MakeConsole) -> None:
    made = make_console(*targets(world.ingest.address, world.inference.address))
    browser = Browser(made.address, {"Authorization": f"Bearer {world.keys['asker']}"})
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(
            browser.post("/infer?model=slow", picture(), content_type="image/png")
        )
    )
    asking.start()
    metrics = f"http://{made.ready['metrics_address']}/metrics"
    ends_at = time.monotonic() + 30
    while 'in_flight{kind="uploads"} 1.0' not in _text(metrics):
        assert time.monotonic() < ends_at
        time.sleep(0.02)
    made.process.send_signal(signal.SIGTERM)
    asking.join()
    assert answers[0].status == 200
    assert made.process.wait(30) == 0


def test_metrics_and_the_log_know_each_request(make_console: MakeConsole, tmp_path: Path) -> None:
    made = make_console(*targets("127.0.0.1:1"))
    browser = Browser(made.address, {})
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    browser.get(
        "/stats?device_id=secret-gate",
        traceparent=f"00-{trace}-00f067aa0ba902b7-01",
        sightline_timeout="2",
    )
    metrics = _text(f"http://{made.ready['metrics_address']}/metrics")
    assert 'sightline_console_requests_total{route="/stats",status="503"} 1.0' in metrics
    made.stop()
    log = (tmp_path / "console" / "stderr.log").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["path"], line["status"], line["trace_id"]) == ("/stats", 503, trace)
    assert "secret-gate" not in log


def _upload(world: World, who: str) -> bytes:
    """Return the begin of the head of an upload."""
    return (
        b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Authorization: Bearer " + world.keys[who].encode() + b"\r\n"
    )


def _begun(stack: ExitStack, made: ServiceProcess, first: bytes) -> socket.socket:
    """Return a connection to a console on which these bytes were sent."""
    connection = stack.enter_context(connected(made.address))
    connection.sendall(first)
    connection.settimeout(0.1)
    return connection


def _answered(connection: socket.socket, part: bytes) -> bytes:
    """Send a part again and again until the other side closes or answers with an error."""
    ends_at = time.monotonic() + 30
    answer = b""
    while time.monotonic() < ends_at:
        with suppress(TimeoutError):
            found = connection.recv(65536)
            answer += found
            if not found or answer.endswith(b"}"):
                return answer
        with suppress(ConnectionError):
            connection.sendall(part)
    raise AssertionError("neither answer nor end")


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=15)


def _text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())
