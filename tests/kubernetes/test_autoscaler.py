"""The autoscaler of deploy/kubernetes, with all that it works with.

Real are the API server, the controllers of deployments and of the autoscaler, prometheus-adapter
with our rules, Prometheus, and an inference service under load. As there is no node, the test says
that each pod is ready, and lets Prometheus scrape the one service as each of the pods.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compat import scaling
from tests.compat.conftest import prometheus as prometheus
from tests.compat.test_monitoring import is_ready, listening
from tests.integration.inference.process import InferenceProcess, ask, client, started
from tests.kubernetes.cluster import Cluster, free_port, rendered, start
from tests.kubernetes.conftest import ADAPTER, CONTROLLERS
from tests.unit.inference_service.tiny_onnx import colour_model, picture

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

PATIENCE = 120.0
FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
GROUP = "custom.metrics.k8s.io"


def eventually(look: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


def accepted(done: subprocess.CompletedProcess[str]) -> None:
    """Assert that a command of kubectl had no error."""
    assert done.returncode == 0, done.stderr


class Deployed:
    """The deployment of the inference service in the cluster."""

    def __init__(self, cluster: Cluster, targets: Path, metrics_address: str) -> None:
        self._cluster = cluster
        self._targets = targets
        self._metrics_address = metrics_address

    def step(self) -> int:
        """Do what nodes would do, and return how many pods the autoscaler wants."""
        words = ("--namespace=sightline", "pods", "--selector=app.kubernetes.io/name=inference")
        pods = self._cluster.get(*words)["items"]
        for pod in pods:
            if pod["status"].get("phase") != "Running":
                self._make_ready(pod)
        targets = [
            {
                "targets": [self._metrics_address],
                "labels": {"namespace": "sightline", "pod": pod["metadata"]["name"]},
            }
            for pod in pods
        ]
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps(targets))
        new.rename(self._targets)
        found = self._cluster.get("--namespace=sightline", "deployment", "inference")
        return int(found["spec"]["replicas"])

    def waiting(self) -> str:
        """Return the pictures that wait for a pod, as the autoscaler has read them last."""
        found = self._cluster.get("--namespace=sightline", "hpa", "inference")
        read = [one.get("pods") for one in found["status"].get("currentMetrics") or ()]
        return next((one["current"]["averageValue"] for one in read if one), "")

    def events(self) -> str:
        words = ("--namespace=sightline", "describe", "hpa", "inference")
        return self._cluster.kubectl(*words).stdout

    def _make_ready(self, pod: dict[str, Any]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
        status = {"phase": "Running", "startTime": now, "conditions": [ready]}
        done = self._cluster.kubectl(
            *("patch", "pod", pod["metadata"]["name"], "--namespace=sightline"),
            *("--subresource=status", "--type=merge", "--patch", json.dumps({"status": status})),
        )
        accepted(done)


def start_prometheus(program: str, folder: Path, targets: Path, stack: ExitStack) -> str:
    jobs = [
        {
            "job_name": "pods",
            "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
        }
    ]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = folder / "prometheus.log"
    flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    process = start([program, *flags, "--web.listen-address=127.0.0.1:0"], log, stack)
    address = listening(process, log)
    eventually(lambda: is_ready(address), log.read_text)
    return address


def start_adapter(cluster: Cluster, prometheus: str, folder: Path, stack: ExitStack) -> None:
    """Start prometheus-adapter with our rules, and let the API server lead to it."""
    rules = (FOLDER / "prometheus-adapter.yaml").read_text()
    config = folder / "rules.yaml"
    config.write_text(rules.replace("[1m]", "[3s]"))  # the test does not wait for minutes
    port = free_port()
    start(
        [
            *(str(ADAPTER), "--config", str(config), "--prometheus-url", f"http://{prometheus}"),
            *("--metrics-relist-interval=1s", "--metrics-max-age=1m"),
            *("--bind-address=127.0.0.1", f"--secure-port={port}"),
            *("--cert-dir", str(folder / "adapter")),
            *(
                f"--{name}={cluster.config}"
                for name in (
                    *("lister-kubeconfig", "authentication-kubeconfig"),
                    "authorization-kubeconfig",
                )
            ),
        ],
        folder / "adapter.log",
        stack,
    )
    accepted(cluster.apply(api_of(port), dry_run=False))
    path = f"/apis/{GROUP}/v1beta1"
    eventually(
        lambda: scaling.metric()[0] in cluster.kubectl("get", "--raw", path).stdout,
        lambda: (cluster.kubectl("get", "--raw", path), (folder / "adapter.log").read_text()),
    )


def api_of(port: int) -> list[dict[str, Any]]:
    """Return the objects that make the API server ask the adapter, at a port of this machine."""
    version = {"group": GROUP, "version": "v1beta1"}
    service = {"namespace": "kube-system", "name": "adapter", "port": port}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "adapter", "namespace": "kube-system"},
            "spec": {
                "type": "ExternalName",
                "externalName": "localhost",
                "ports": [{"port": port}],
            },
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"v1beta1.{GROUP}"},
            "spec": {
                **version,
                "service": service,
                "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]


def start_controllers(cluster: Cluster, folder: Path, stack: ExitStack) -> None:
    """Start what makes pods of deployments, and the autoscaler."""
    names = ["horizontal-pod-autoscaler-controller", "deployment-controller"]
    names += ["replicaset-controller"]
    start(
        [
            *(str(CONTROLLERS), "--kubeconfig", str(cluster.config), "--leader-elect=false"),
            *("--controllers", ",".join(names), "--secure-port", str(free_port())),
            *("--bind-address=127.0.0.1", "--cert-dir", str(folder / "controllers")),
            "--horizontal-pod-autoscaler-sync-period=1s",
        ],
        folder / "controllers.log",
        stack,
    )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InferenceProcess]:
    colour_model(tmp_path / "models/colours/1/model.onnx", wait_seconds=1)
    flags = ["--model-repository", str(tmp_path / "models"), "--metrics-listen", "127.0.0.1:0"]
    with started(tmp_path, *flags, "--workers", "1") as server:
        yield server


def test_the_autoscaler_adds_pods_under_load_and_takes_them_away(
    cluster: Cluster, service: InferenceProcess, prometheus: str, tmp_path: Path
) -> None:
    targets = tmp_path / "targets.json"
    targets.write_text("[]")
    objects = rendered(FOLDER / "base")
    (scaler,) = [one for one in objects if one["kind"] == "HorizontalPodAutoscaler"]
    scaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 0
    least, most = scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]
    with ExitStack() as stack:
        assert service.metrics_address
        address = start_prometheus(prometheus, tmp_path, targets, stack)
        deployed = Deployed(cluster, targets, service.metrics_address)
        accepted(cluster.apply(objects, dry_run=False))
        start_controllers(cluster, tmp_path, stack)
        eventually(lambda: deployed.step() == least, deployed.events)
        start_adapter(cluster, address, tmp_path, stack)
        stub = stack.enter_context(client(service)).stub
        calls = [stub.Infer.future(ask(picture((9, 9, 9))), timeout=300) for _ in range(60)]
        begun = time.monotonic()
        eventually(lambda: deployed.step() == most, deployed.events)
        print(f"{least} pods became {most} in {time.monotonic() - begun:.0f} s")  # noqa: T201
        for call in calls:
            call.cancel()  # type: ignore[no-untyped-call]
        # It takes no pod away while it cannot read one of the metrics: nothing measures the CPU of
        # pods that do not run.
        eventually(lambda: deployed.step() > 0 and deployed.waiting() == "0", deployed.events)
        assert deployed.step() == most
        scaler["spec"]["metrics"] = [m for m in scaler["spec"]["metrics"] if m["type"] == "Pods"]
        accepted(cluster.apply([scaler], dry_run=False))
        eventually(lambda: deployed.step() == least, deployed.events)
