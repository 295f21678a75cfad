"""Both services and a node under a little load, scraped by a real Prometheus.

It tries `docs/reference/metrics.md` and the files of `deploy/prometheus` and `deploy/grafana`.
"""

import itertools
import json
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from ingest_service.store.protocol import SpoolKey
from sightline import DetectorResult, EdgeNode, InferenceClient, Policy, PredictionLogger
from sightline.cli.processes import ServiceProcess
from tests.compat.conftest import ROOT
from tests.pages import text
from tests.unit.ingest_service.samples import gap, header, prediction, predictions, request

DEPLOY = ROOT / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
PAGE = "reference/metrics.md"
ROW = re.compile(r"^\| `(sightline_\w+)` \| (\w+) \| ([^|]*)\|", re.MULTILINE)
LOAD_SECONDS = 0.2
PATIENCE = 60.0


class Panel(NamedTuple):
    """One expression of a dashboard."""

    dashboard: str
    title: str
    expression: str


PANELS = [
    Panel(path.stem, panel["title"], target["expr"])
    for path in DASHBOARDS
    for panel in json.loads(path.read_text())["panels"]
    for target in panel.get("targets", ())
]


class Scraped(NamedTuple):
    """The running services."""

    addresses: dict[str, str]
    """Address of the metrics of each job of Prometheus."""
    prometheus: str


class Unsure:
    """A model on a device that fails for every second image."""

    name, version = "unsure", "1"

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, _image: object) -> DetectorResult:
        self.calls += 1
        if self.calls % 2:
            raise RuntimeError("out of memory")
        return DetectorResult((), 64, 64, self.name, self.version)


def send_some_of_each(address: str) -> None:
    """Send predictions, duplicates, a rejected one and a gap, in a spool of their own."""
    spool = SpoolKey("gate-2", str(uuid.uuid4()))
    undated = prediction(4)
    undated.ClearField("captured_at")
    with grpc.insecure_channel(address) as channel:
        for _ in range(2):
            message = request(*predictions(1, 3), undated, gap(5, 6), head=header(spool))
            IngestServiceStub(channel).PredictionLog(iter([message]), timeout=PATIENCE)


def put_under_load(node: EdgeNode, ingest: str, folder: Path, end: threading.Event) -> None:
    folder.mkdir()
    image = np.full((64, 64, 3), 99, np.uint8)
    Image.fromarray(image).save(folder / "a.png")
    list(node.run(folder))
    while not end.wait(LOAD_SECONDS):
        node.process(image)
        send_some_of_each(ingest)


def listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address at which a process listens, as soon as it does."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return f"127.0.0.1:{connection.laddr.port}"
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=10) as page:
            return bool(page.status == 200)
    except urllib.error.HTTPError:
        return False


def start_prometheus(
    program: str, folder: Path, addresses: dict[str, str], stack: ExitStack
) -> str:
    """Start Prometheus with the project's own files, but for addresses and interval."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert {job["job_name"] for job in config["scrape_configs"]} == addresses.keys()
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [addresses[job["job_name"]]]}]
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = folder / "prometheus.log"
    flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [program, *flags, "--web.listen-address=127.0.0.1:0"], cwd=folder, stderr=stderr
        )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    address = listening(process, log)
    assert eventually(lambda: is_ready(address)), log.read_text()  # it listens before it answers
    return address


@pytest.fixture(scope="module")
def scraped(prometheus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    folder = tmp_path_factory.mktemp("monitoring")
    flags = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    with ExitStack() as stack:
        ingest = stack.enter_context(
            ServiceProcess("ingest_service", [*flags, "--database", str(folder / "x.duckdb")])
        )
        repository = ["--model-repository", str(ROOT / "models/repository")]
        inference = stack.enter_context(ServiceProcess("inference_service", [*flags, *repository]))
        console = stack.enter_context(ServiceProcess("console_service", flags))
        logger = PredictionLogger(ingest.address, device_id="gate-1", spool_dir=folder / "spool")
        client = InferenceClient(inference.address)
        policy = Policy(takes_other_labels=True)
        node = stack.enter_context(EdgeNode(Unsure(), client, logger, policy))
        addresses = {
            "sightline-ingest": str(ingest.ready["metrics_address"]),
            "sightline-inference": str(inference.ready["metrics_address"]),
            "sightline-console": str(console.ready["metrics_address"]),
            "sightline-edge": node.serve_metrics("127.0.0.1:0"),
        }
        end = threading.Event()
        load = threading.Thread(
            target=put_under_load, args=[node, ingest.address, folder / "pictures", end]
        )
        load.start()
        stack.callback(load.join)
        stack.callback(end.set)
        yield Scraped(addresses, start_prometheus(prometheus, folder, addresses, stack))


def api(address: str, path: str, **query: str) -> Any:
    url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as page:
        return json.load(page)["data"]


def eventually(look: Callable[[], Any]) -> Any:
    """Return the first result that is true, or the last one."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def values(scraped: Scraped, expression: str) -> list[str]:
    """Return the values of an expression as Grafana would ask for it, without NaN."""
    filled = expression.replace("$__rate_interval", "5s").replace("$instance", ".*")
    assert "$" not in filled, filled
    found = api(scraped.prometheus, "query", query=filled)["result"]
    return [sample["value"][1] for sample in found if sample["value"][1] != "NaN"]


def test_every_metric_is_on_the_page_and_every_one_of_the_page_is_served(scraped: Scraped) -> None:
    def families() -> dict[str, Any]:
        pages = []
        for address in scraped.addresses.values():
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
                pages.append(page.read().decode())
        found = {f.name: f for page in pages for f in text_string_to_metric_families(page)}
        return {
            f"{name}_total" if family.type == "counter" else name: family
            for name, family in found.items()
            if name.startswith("sightline_") and not name.endswith("_created")
        }

    served = families()
    rows = {name: (kind, labels) for name, kind, labels in ROW.findall(text(PAGE))}
    assert {name: kind for name, (kind, _) in rows.items()} == {
        name: family.type for name, family in served.items()
    }
    for name, (_, labels) in rows.items():
        named = set(re.findall(r"`(\w+)`", re.sub(r":[^|]*", "", labels)))
        assert {frozenset(sample.labels.keys() - {"le"}) for sample in served[name].samples} <= {
            frozenset(named)
        }, name


def test_the_pages_name_no_metric_that_there_is_not() -> None:
    rows = {name for name, _, _ in ROW.findall(text(PAGE))}
    files = [*DASHBOARDS, DEPLOY / "prometheus/sightline.rules.yml"]
    files += [ROOT / "docs/how-to/monitor.md", ROOT / "docs/reference/metrics.md"]
    for path in files:
        named = set(re.findall(r"\b(sightline_(?:\w+))\b", path.read_text()))
        assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= rows, path


def test_every_panel_has_data(scraped: Scraped) -> None:
    # One test for all: each process of tests that runs one of this file starts the services.
    left = list(PANELS)
    assert {panel.dashboard for panel in left} == {path.stem for path in DASHBOARDS}

    def look() -> bool:
        left[:] = [panel for panel in left if not values(scraped, panel.expression)]
        return not left

    assert eventually(look), left


def test_the_rules_are_evaluated_and_tell_what_is_so(scraped: Scraped) -> None:
    def rules() -> Any:
        groups = api(scraped.prometheus, "rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else None

    found = eventually(rules)
    assert {rule["health"] for rule in found} == {"ok"}
    # The load gives up predictions (gap), and nothing else that an alert would find at once.
    firing = {alert["labels"]["alertname"] for alert in api(scraped.prometheus, "alerts")["alerts"]}
    assert "SightlineServiceDown" not in firing
    assert eventually(
        lambda: values(scraped, 'ALERTS{alertname="SightlineLossesDeclared",alertstate="firing"}')
    )


def test_probes_answer_beside_the_metrics(scraped: Scraped) -> None:
    for address, path in itertools.product(scraped.addresses.values(), ("/healthz", "/readyz")):
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as page:
            assert page.status == 200


def test_the_dashboards_are_provisioned() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((provisioning / "dashboards/sightline.yml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file"
    assert {path.stem for path in DASHBOARDS} == {"sightline-services", "sightline-nodes"}
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        assert dashboard["uid"] == path.stem
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids))
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            assert panel["type"] == "row" or panel["description"]
