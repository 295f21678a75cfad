"""Reading the log over HTTP, from real services."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.cli.processes import ServiceProcess
from tests.compat.conftest import require
from tests.integration.auth.services import Client, ingest
from tests.integration.console.conftest import World, console, targets
from tests.integration.console.http import Browser

ROOT = Path(__file__).parents[3]
LIST = "curl -s 'http://localhost:8001/predictions"
JQ = Path(shutil.which("jq") or ROOT / ".tools/jq/bin/jq")


def test_stats_are_those_of_the_service(world: World) -> None:
    answer = world.browser().get("/stats")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    found = answer.json
    assert (found["total_predictions"], found["defects_detected"]) == (4, 0)
    assert [(one["key"], one["count"]) for one in found["by_device"]] == [
        ("gate-1", 3),
        ("gate-2", 1),
    ]
    assert found["by_edge_device"] == {"gate-1": 3, "gate-2": 1}
    assert found["by_source"][0]["key"] == "device"
    assert found["inference_time"] is None


def test_details_are_counted_on_request(world: World) -> None:
    assert world.browser().get("/stats").json["with_verdict"] is None
    assert world.browser().get("/stats?details=true").json["with_verdict"] == 0


def test_figures_count_over_time_frame_confidence_and_versions(world: World) -> None:
    browser = world.browser()
    series = browser.get("/series?bucket=3600").json
    assert series["bucket"] == 3600
    assert sum(bucket["predictions"] for bucket in series["buckets"]) == 4
    assert series["as_of"].endswith("Z")
    fine = browser.get("/series?bucket=300&device_id=gate-2").json
    assert sum(bucket["predictions"] for bucket in fine["buckets"]) == 1
    frame = browser.get("/frame?columns=8&rows=4").json
    assert (frame["columns"], frame["rows"], frame["predictions"]) == (8, 4, 4)
    confidence = browser.get("/confidence").json
    assert confidence["all"]["current"] == [0] * 20
    assert confidence["all"]["stability_index"] is None
    (version,) = browser.get("/models").json["versions"]
    assert (version["model_name"], version["predictions"], version["devices"]) == ("m", 4, 2)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/series?bucket=59", "bucket"),
        ("/series?bucket=0", "bucket"),
        ("/series?bucket=soon", "bucket"),
        ("/frame?columns=65", "columns"),
        ("/confidence?min_confidence=0.5", "min_confidence"),
        ("/devices?window=1", "window"),
        ("/gaps?reason=bored", "reason"),
        ("/models/loaded?limit=1", "limit"),
        ("/live?max_per_second=0", "max_per_second"),
    ],
)
def test_a_parameter_out_of_its_range_is_named(world: World, path: str, field: str) -> None:
    answer = world.browser().get(path)
    assert (answer.status, answer.json["field"]) == (400, field), answer.json


@pytest.mark.parametrize("name", ["device_id", "edge_device_id"])
def test_a_filter_picks_devices(world: World, name: str) -> None:
    found = world.browser().get(f"/predictions?{name}=gate-2").json["predictions"]
    assert [one["device_id"] for one in found] == ["gate-2"]
    assert found[0]["prediction"]["source"] == "device"
    assert found[0]["prediction"]["captured_at"].endswith("Z")
    both = world.browser().get(f"/stats?{name}=gate-2&{name}=gate-1").json
    assert both["total_predictions"] == 4


def test_pages_follow_each_other(world: World) -> None:
    seen, token = [], ""
    while True:
        page = world.browser().get(f"/predictions?limit=3&page_token={token}").json
        seen += [(one["device_id"], one["prediction"]["sequence"]) for one in page["predictions"]]
        token = page["next_page_token"]
        if not token:
            break
    assert sorted(seen) == [("gate-1", 1), ("gate-1", 2), ("gate-1", 3), ("gate-2", 1)]


@pytest.mark.parametrize(
    ("path", "field", "reason"),
    [
        ("/predictions?limit=1001", "limit", "INVALID_FIELD"),
        ("/predictions?limt=1", "limt", "UNKNOWN_PARAMETER"),
        ("/predictions?page_token=nonsense", "page_token", "INVALID_PAGE_TOKEN"),
        ("/stats?source=edge", "source", "INVALID_FIELD"),
        ("/stats?start_time=2026-01-01", "start_time", "INVALID_FIELD"),
        ("/predictions/gate-1/spool/none", "sequence", "INVALID_FIELD"),
    ],
)
def test_a_mistake_names_its_field(world: World, path: str, field: str, reason: str) -> None:
    answer = world.browser().get(path)
    assert (answer.status, answer.json["code"]) == (400, "INVALID_ARGUMENT")
    assert answer.json["field"] == field
    assert answer.json["reason"] == reason, answer.json
    assert answer.json["retryable"] is False


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/nothing", 404, "NO_SUCH_ROUTE"),
        ("POST", "/stats", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/pictures/00ff", 404, "PICTURES_NOT_KEPT"),
        ("GET", "/static/../settings.py", 404, "NO_SUCH_ROUTE"),
        ("GET", "/static/%2e%2e/settings.py", 404, "NO_SUCH_ROUTE"),
        ("GET", "/stats/", 404, "NO_SUCH_ROUTE"),
        *(
            ("GET", f"/predictions/{device}/{uuid.UUID(int=4)}/1", 404, "NOT_COMMITTED")
            for device in ("a%2Fb", "a%0Ab", "a%3Fb%23c%25", "%F0%9F%98%80", "a/../b%2F")
        ),
    ],
)
def test_what_is_not_there_says_so(
    world: World, method: str, path: str, status: int, reason: str
) -> None:
    answer = world.browser().send(method, path, None)
    assert (answer.status, answer.reason) == (status, reason)


def test_a_service_that_is_away_is_named_and_the_console_stays_ready(tmp_path: Path) -> None:
    with console(tmp_path, *targets("127.0.0.1:1")) as made:
        browser = Browser(made.address, {})
        answer = browser.get("/stats", sightline_timeout="2")
        assert (answer.status, answer.reason) == (503, "SERVICE_UNREACHABLE")
        assert "the ingest service at 127.0.0.1:1 cannot be reached" in answer.json["message"]
        assert answer.json["retryable"] is True
        health = browser.get("/health")
        assert (health.status, health.json["ingest"]) == (503, "unavailable")
        assert [browser.get(path).status for path in ("/healthz", "/readyz")] == [200, 200]


@pytest.fixture(scope="module")
def open_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A console before an ingest service that asks nobody for a credential, as on a laptop."""
    folder = tmp_path_factory.mktemp("open")
    with (
        ingest(folder) as log,
        console(folder / "console", *targets(log.address)) as made,
    ):
        Client(log).log("factory-camera-01", messages=2)
        yield made


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("curl -s http://localhost:8001/stats | jq '.defects_detected / .total_predictions'", 0),
        (
            "curl -s http://localhost:8001/stats | jq '.by_edge_device'",
            {"factory-camera-01": 2},
        ),
        (f"{LIST}?edge_device_id=factory-camera-01' | jq '.predictions | length'", 2),
        (f"{LIST}?limit=1' | jq '[.predictions[].device_id]'", ["factory-camera-01"]),
        ("curl -s http://localhost:8001/health | jq '.ingest'", "serving"),
        ("curl -s http://localhost:8001/stats | jq '.total_predictions > 5000000000'", False),
    ],
)
def test_commands_of_older_services_work(
    open_console: ServiceProcess, command: str, expected: object
) -> None:
    require(JQ, "`make compat` brings Debian's jq")
    words = command.replace("localhost:8001", open_console.address).replace("jq", str(JQ), 1)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", words], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
