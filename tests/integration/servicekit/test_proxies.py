"""Calls that go through a proxy of the environment, and calls that do not.

The proxy is a real listener, and each caller is a process that starts with the variables set.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

from edge.doctor import services
from edge.settings import EdgeSettings
from servicekit.routes import spare_proxies
from tests.fakes.cameras import camera
from tests.fakes.ingest import FakeIngest
from tests.fakes.proxy import VARIABLES, RecordingProxy, recording_proxy
from tests.integration.cli.terminal import ROOT, sightline
from tests.unit.servicekit.auth.issuer import Issuer
from tests.unit.servicekit.otlp_collector import Collector, collecting

ELSEWHERE = "192.0.2.1:9"  # RFC 5737: nobody's


@pytest.fixture
def proxy() -> Iterator[RecordingProxy]:
    with recording_proxy() as proxy:
        yield proxy


def dialled(environment: Mapping[str, str], *words: str) -> dict[str, str]:
    """Return how each call of a process ended."""
    command = [sys.executable, "-m", "tests.integration.servicekit.dialling", *words]
    done = subprocess.run(
        command, env=dict(environment), cwd=ROOT, capture_output=True, timeout=100, check=True
    )
    ends: dict[str, str] = json.loads(done.stdout)
    return ends


def own_address() -> str:
    """Return an address of this machine on a network, or that of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def test_calls_to_this_machine_never_reach_a_proxy(proxy: RecordingProxy) -> None:
    issuer = Issuer("keys")
    with FakeIngest() as ingest, camera() as network, collecting() as collector:
        port = ingest.target.rpartition(":")[2]
        reached = [
            f"{door}={target}"
            for door in ("key", "probe", "models")
            for target in (ingest.target, f"localhost:{port}", f"ipv4:127.0.0.1:{port}")
        ]
        ends = dialled(
            {**proxy.environment(), "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=open%20sesame"},
            *reached,
            f"dial={ingest.target}",
            f"plain={socket.gethostname()}:{port}",
            f"plain={own_address()}:{port}",
            f"http={issuer.url}?token=t",
            f"camera={network.url}?token=t",
            f"spans={collector.endpoint}",
        )
        assert isinstance(collector, Collector)
        assert [span.name for span in collector.spans] == ["s"]
    issuer.close()
    assert proxy.requests == []
    assert {ends[word] for word in reached} == {"UNIMPLEMENTED"}, ends
    assert ends[f"dial={ingest.target}"] == "OK"
    assert ends[f"http={issuer.url}?token=t"] == "keys"
    assert ends[f"camera={network.url}?token=t"] == "OK"


@pytest.mark.parametrize("variable", VARIABLES)
def test_calls_to_other_machines_go_through_the_proxy(proxy: RecordingProxy, variable: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment[variable] = f"http://someone:pw@{proxy.address}"
    words = [f"plain={ELSEWHERE}", f"tls={ELSEWHERE}", f"dial={ELSEWHERE}"]
    ends = dialled(environment, *words)
    assert ends[f"plain={ELSEWHERE}"] == ends[f"tls={ELSEWHERE}"] == "UNAVAILABLE"
    assert ends[f"dial={ELSEWHERE}"] == (
        f"{ELSEWHERE} cannot be reached through the proxy {proxy.address}, which the variable"
        f" {variable} names: Tunnel connection failed: 403 Forbidden"
    )
    assert len(proxy.requests) >= 3
    for request in proxy.requests:
        assert request.startswith(f"CONNECT {ELSEWHERE} HTTP/1.".encode())
        assert b"c29tZW9uZTpwdw==" in request  # the proxy's own user and password
        assert b"sesame" not in request


def test_headers_of_spans_without_tls_never_reach_a_proxy(proxy: RecordingProxy) -> None:
    environment = {**proxy.environment(), "SECONDS": "0.3"}
    secret = {"OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=open%20sesame"}
    dialled(environment | secret, f"spans=http://{ELSEWHERE}")
    assert proxy.requests == []
    del environment["GRPC_ADDRESS_HTTP_PROXY"]  # it would lead to the proxy itself
    dialled(environment, f"spans=http://{ELSEWHERE}")
    assert proxy.requests[0].startswith(f"CONNECT {ELSEWHERE}".encode())


def test_the_doctor_knows_which_way_grpc_takes(proxy: RecordingProxy) -> None:
    """Compare what `proxy_of` says with what a real channel does; the port tells them apart."""
    goes_through = {
        "192.0.2.1:1001|": True,
        "192.0.2.1:1002|192.0.2.1": False,
        "192.0.2.1:1003|192.0.0.0/8": False,
        "ipv4:192.0.2.1:1004|192.0.2.0/24": False,
        "192.0.2.1:1005|192.0.3.0/24": True,
        "a.invalid:1006|invalid": False,
        "a.invalid:1007|x, .INVALID": False,
        "a.invalid:1008|nvalid": True,
        "a.invalid:1009|*": True,
        "a.invalid:1010|*.invalid": True,
        "a.invalid:1011|a.invalid:1011": True,
        "dns:///a.invalid:1012|b.invalid": True,
        "dns:///a.invalid:1013|a.invalid": False,
        "[2001:db8::1]:1014|": True,
        "[2001:db8::1]:1015|2001:db8::/32": False,
    }
    environment = {**proxy.environment(), "SECONDS": "0.2"}
    for name in ("grpc_proxy", "GRPC_ADDRESS_HTTP_PROXY"):
        del environment[name]
    said = dialled(environment, *(f"route={word}" for word in goes_through))
    expected = {True: f"https_proxy {proxy.address}", False: "direct"}
    assert said == {f"route={word}": expected[way] for word, way in goes_through.items()}
    seen = {line.split(b" ", 2)[1].rpartition(b":")[2].decode() for line in proxy.requests}
    ports = {word.partition("|")[0][-4:]: way for word, way in goes_through.items()}
    assert seen == {port for port, way in ports.items() if way}


def test_the_command_line_reaches_services_of_this_machine(proxy: RecordingProxy) -> None:
    with FakeIngest() as ingest:
        flags = ("--ingest", ingest.target, "--inference", ingest.target)
        done = sightline("health", *flags, "--json", env=proxy.environment())
    assert [json.loads(done.stdout)[name]["status"] for name in ("ingest", "inference")] == [
        "UNIMPLEMENTED"
    ] * 2
    assert proxy.requests == []


def test_the_doctor_names_the_proxy_without_its_password(
    proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://someone:pw@{proxy.address}")
    settings = EdgeSettings.model_validate({"ingest_target": ELSEWHERE})
    route, reached = findings = list(services.ingest(settings, 5.0))
    assert route.message.startswith(
        f"calls go through the proxy {proxy.address}, which the variable https_proxy names"
    )
    assert route.message.endswith("and it can read them: they have no TLS")
    assert reached.action.startswith("Correct https_proxy, or add the host to no_grpc_proxy")
    assert "pw" not in str(findings)


@pytest.mark.parametrize(
    "place", ["http://user:pw@cam-1/stream", "http://cam-1:80/stream?token=t", "http://localhost/x"]
)
def test_a_cameras_password_in_plain_text_spares_the_proxy(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "other")
    spare_proxies(place)
    spare_proxies(place)
    host = "localhost" if "localhost" in place else "cam-1"
    assert os.environ["no_proxy"] == f"other,{host}"


@pytest.mark.parametrize(
    "place", ["https://user:pw@cam-1/stream", "http://cam-1/stream", "rtsp://user:pw@cam-1/s", "0"]
)
def test_other_cameras_are_reached_as_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "other")
    spare_proxies(place)
    assert os.environ["no_proxy"] == "other"
