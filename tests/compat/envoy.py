"""A real Envoy between devices and the replicas of a service.

The replicas are in a file that Envoy watches, as a control plane would tell it of a Service's pods.
"""

import http.client
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from edge.doctor.health import INFERENCE
from tests.compat.conftest import ROOT

FILE = ROOT / "deploy/envoy/inference.yaml"
Mode = Literal["tcp", "http"]
"""`tcp`: a connection of a device goes to one replica; `http`: each of its calls to any."""
PATIENCE = 60.0


class Envoy:
    """The running proxy.

    Attributes:
        address: of its listener for devices.
    """

    def __init__(self, admin: str, endpoints: Path) -> None:
        self._admin = admin
        self._endpoints = endpoints
        (listener,) = self._ask("listeners?format=json")["listener_statuses"]
        socket = listener["local_address"]["socket_address"]
        self.address = f"{socket['address']}:{socket['port_value']}"

    def lead_to(self, replicas: Sequence[str]) -> None:
        """Make it use these replicas, host:port, and wait until it finds them healthy."""
        _write_endpoints(self._endpoints, replicas)
        deadline = time.monotonic() + PATIENCE
        while (seen := self._replicas()) != set(replicas):
            assert time.monotonic() < deadline, seen
            time.sleep(0.02)

    def counter(self, name: str) -> int:
        """Return a counter of the connections to the replicas, such as `upstream_cx_total`."""
        (found,) = self._ask(f"stats?format=json&filter=^cluster.replicas.{name}$")["stats"]
        return int(found["value"])

    def _replicas(self) -> set[str]:
        for cluster in self._ask("clusters?format=json")["cluster_statuses"]:
            if cluster["name"] == "replicas":
                sockets = [
                    host["address"]["socket_address"]
                    for host in cluster.get("host_statuses", ())
                    if host["health_status"] == {"eds_health_status": "HEALTHY"}
                ]
                return {f"{one['address']}:{one['port_value']}" for one in sockets}
        return set()

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self._admin}/{path}", timeout=30) as page:
            return json.load(page)


@contextmanager
def running(program: str, mode: Mode, folder: Path, service: str = INFERENCE) -> Iterator[Envoy]:
    """Start Envoy without replicas of a service, and end it."""
    endpoints, admin = folder / "endpoints.json", folder / "admin"
    _write_endpoints(endpoints, [])
    config = folder / "envoy.json"
    config.write_text(json.dumps(_config(mode, endpoints, service)))
    log = folder / "envoy.log"
    flags = ["--config-path", str(config), "--admin-address-path", str(admin)]
    flags += ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen([program, *flags], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _is_live(admin):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield Envoy(admin.read_text(), endpoints)
    finally:
        process.terminate()
        process.wait()


def _is_live(admin: Path) -> bool:
    """Return True if Envoy serves, whose admin address is in a file that it writes."""
    try:
        with urllib.request.urlopen(f"http://{admin.read_text()}/ready", timeout=30) as page:
            return bool(page.status == 200)
    except (OSError, http.client.HTTPException):  # no file yet, or 503
        return False


def _write_endpoints(path: Path, replicas: Sequence[str]) -> None:
    """Replace the file in one step: Envoy looks when a file is moved there."""
    endpoints = []
    for replica in replicas:
        host, _, port = replica.rpartition(":")
        address = {"socket_address": {"address": host, "port_value": int(port)}}
        endpoints.append({"endpoint": {"address": address}})
    assignment = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "replicas",
        "endpoints": [{"lb_endpoints": endpoints}],
    }
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"resources": [assignment]}))
    new.rename(path)


def _config(mode: Mode, endpoints: Path, service: str) -> dict[str, Any]:
    """Return the file of deploy/envoy with replicas from a file, and on ports of this machine."""
    config: dict[str, Any] = yaml.safe_load(FILE.read_text())
    any_port = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    config["node"] = {"id": "proxy", "cluster": "proxies"}
    config["admin"] = {"address": any_port}
    (listener,) = config["static_resources"]["listeners"]
    listener["address"] = any_port
    (cluster,) = config["static_resources"]["clusters"]
    (check,) = cluster["health_checks"]
    check["grpc_health_check"]["service_name"] = service
    del cluster["load_assignment"], cluster["dns_refresh_rate"]
    watched = {"path": str(endpoints), "watched_directory": {"path": str(endpoints.parent)}}
    cluster["type"] = "EDS"
    cluster["eds_cluster_config"] = {"eds_config": {"path_config_source": watched}}
    if mode == "tcp":
        listener["filter_chains"] = [{"filters": [_TCP]}]
    return config


_TCP = {
    "name": "envoy.filters.network.tcp_proxy",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "devices",
        "cluster": "replicas",
    },
}
