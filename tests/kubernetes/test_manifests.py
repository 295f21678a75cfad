"""deploy/kubernetes against a real API server: what it accepts, and what it refuses."""

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kubernetes.cluster import Cluster, rendered

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
OVERLAYS = ("base", "tls")
Objects = dict[tuple[str, str], dict[str, Any]]
"""Objects by kind and name."""


def objects(overlay: str) -> Objects:
    return {(one["kind"], one["metadata"]["name"]): one for one in rendered(FOLDER / overlay)}


@pytest.fixture(scope="session")
def base(cluster: Cluster) -> Objects:
    """The objects of the base, which the server has stored."""
    found = objects("base")
    done = cluster.apply(list(found.values()), dry_run=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("serverside-applied") == len(found)
    assert done.stderr == "", "a warning, such as of an old version or of a pod that is refused"
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_accepted_over_the_base(
    cluster: Cluster, base: Objects, overlay: str
) -> None:
    found = objects(overlay)
    done = cluster.apply(list(found.values()), dry_run=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("serverside-applied (server dry run)") == len(found)
    print(f"{overlay}: {len(found)} objects accepted")  # noqa: T201 - `pytest -rP` shows it


class Fault(NamedTuple):
    """One thing that is wrong in an object, and what the server says of it."""

    kind: str
    name: str
    path: str
    value: Any
    said: str


_POD = "spec.template.spec"
_CONTAINER = f"{_POD}.containers.0"
FAULTS = [
    # Of spelling and type.
    Fault("Deployment", "inference", f"{_CONTAINER}.readynessProbe", {}, "readynessProbe"),
    Fault("Deployment", "inference", f"{_CONTAINER}.livenessProbe.period", 1, "period"),
    Fault("StatefulSet", "ingest", "spec.replicas", "one", "spec.replicas"),
    Fault("HorizontalPodAutoscaler", "inference", "spec.maxReplica", 9, "maxReplica"),
    Fault("NetworkPolicy", "services", "spec.ingres", [], "ingres"),
    # Of meaning, which no schema finds.
    Fault(
        *("Deployment", "inference", "spec.selector.matchLabels.app", "inference"),
        "`selector` does not match template `labels`",
    ),
    Fault(
        *("StatefulSet", "ingest", f"{_POD}.volumes.0.name", "temporary"),
        "volumeMounts[1].name: Not found",
    ),
    Fault(
        *("Deployment", "inference", f"{_CONTAINER}.ports.1.name", "grpc"),
        'ports[1].name: Duplicate value: "grpc"',
    ),
    Fault(
        *("Deployment", "inference", f"{_CONTAINER}.ports.1.name", "metrics_of_prometheus"),
        "ports[1].name: Invalid value",
    ),
    Fault(
        *("Deployment", "inference", f"{_CONTAINER}.readinessProbe.httpGet", {"port": 1}),
        "may not specify more than 1 handler type",
    ),
    Fault(
        *("Deployment", "inference", f"{_CONTAINER}.lifecycle.preStop.sleep.seconds", 61),
        "must be non-negative and less than terminationGracePeriodSeconds",
    ),
    Fault(
        *("Deployment", "inference", f"{_CONTAINER}.resources.requests.memory", "4Gi"),
        "must be less than or equal to memory limit",
    ),
    Fault(
        *("Deployment", "inference", f"{_CONTAINER}.resources.limits.memory", "2GB"),
        "quantities must match the regular expression",
    ),
    Fault(
        *("Deployment", "inference", "spec.strategy.rollingUpdate.maxSurge", 0),
        "may not be 0 when `maxSurge` is 0",
    ),
    Fault("StatefulSet", "ingest", "spec.serviceName", "other", "field is immutable"),
    Fault(
        *("HorizontalPodAutoscaler", "inference", "spec.maxReplicas", 1),
        "must be greater than or equal to `minReplicas`",
    ),
    Fault(
        *("PodDisruptionBudget", "inference", "spec.minAvailable", 1),
        "minAvailable and maxUnavailable cannot be both set",
    ),
    Fault(
        *("NetworkPolicy", "services", "spec.egress.0.ports.0.protocol", "QUIC"),
        "ports[0].protocol: Unsupported value",
    ),
    Fault("Service", "ingest", "spec.ports.0.port", 0, "must be between 1 and 65535"),
    Fault(
        *("PersistentVolumeClaim", "sightline-models", "spec.accessModes", ["ReadMany"]),
        "accessModes: Unsupported value",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.path}")
def test_a_fault_is_refused(cluster: Cluster, base: Objects, fault: Fault) -> None:
    wrong = deepcopy(base[fault.kind, fault.name])
    put(wrong, fault.path, fault.value)
    done = cluster.apply([wrong], dry_run=True)
    assert done.returncode == 1, done.stdout
    assert fault.said in done.stderr


def put(one: Any, path: str, value: Any) -> None:
    """Set a field of an object; numbers in the path are places of lists."""
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        one = one[step]
    one[last] = value


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("workload", ["Deployment/inference", "StatefulSet/ingest"])
def test_the_pods_are_allowed_in_the_restricted_namespace(
    cluster: Cluster, base: Objects, overlay: str, workload: str
) -> None:
    good = pod(objects(overlay), workload)
    done = cluster.apply([good], dry_run=True)
    assert (done.returncode, done.stderr) == (0, "")
    for path, value in (
        ("spec.securityContext.runAsUser", 0),
        ("spec.securityContext.seccompProfile.type", "Unconfined"),
        ("spec.containers.0.securityContext.allowPrivilegeEscalation", True),
        ("spec.containers.0.securityContext.capabilities", {"add": ["NET_ADMIN"]}),
        ("spec.hostNetwork", True),
    ):
        bad = deepcopy(good)
        put(bad, path, value)
        done = cluster.apply([bad], dry_run=True)
        assert done.returncode == 1, path
        assert 'violates PodSecurity "restricted:latest"' in done.stderr, path


def pod(found: Objects, workload: str) -> dict[str, Any]:
    """Return a pod as the controller of a workload would make it."""
    kind, _, name = workload.partition("/")
    one = found[kind, name]
    template = deepcopy(one["spec"]["template"])
    for claim in one["spec"].get("volumeClaimTemplates", ()):
        volume = {"name": claim["metadata"]["name"]}
        volume["persistentVolumeClaim"] = {"claimName": f"{volume['name']}-{name}-0"}
        template["spec"]["volumes"].append(volume)
    place = {"name": f"{name}-0", "namespace": one["metadata"]["namespace"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], **place},
        "spec": template["spec"],
    }


def test_a_deployment_whose_pods_would_be_refused_is_warned_of(
    cluster: Cluster, base: Objects
) -> None:
    bad = deepcopy(base["Deployment", "inference"])
    put(bad, f"{_POD}.hostNetwork", True)
    done = cluster.apply([bad], dry_run=True)
    assert 'would violate PodSecurity "restricted:latest"' in done.stderr
