"""Metrics and decisions of the horizontal pod autoscaler, by the files of deploy/kubernetes."""

import math
from collections.abc import Sequence
from typing import Any

import yaml

from tests.compat.conftest import ROOT

FOLDER = ROOT / "deploy/kubernetes"
TOLERANCE = 0.1
"""Change of the load below which the autoscaler does nothing, by default."""


def scaler() -> dict[str, Any]:
    """Return the autoscaler's `spec`."""
    found = yaml.safe_load_all((FOLDER / "base/inference.yaml").read_text())
    (one,) = [item for item in found if item["kind"] == "HorizontalPodAutoscaler"]
    spec: dict[str, Any] = one["spec"]
    return spec


def metric() -> tuple[str, int]:
    """Return the name of the metric of pods, and its target for each of them."""
    (found,) = [one["pods"] for one in scaler()["metrics"] if one["type"] == "Pods"]
    assert found["target"]["type"] == "AverageValue"
    return found["metric"]["name"], int(found["target"]["averageValue"])


def rule() -> dict[str, Any]:
    """Return the adapter's rule for the metric."""
    rules = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]
    name, _ = metric()
    (one,) = [rule for rule in rules if rule["seriesQuery"].partition("{")[0] == name]
    found: dict[str, Any] = one
    return found


def query(pods: Sequence[str], window: str = "1m") -> str:
    """Return the query that the adapter makes of its rule, for pods of the namespace `sightline`.

    The words in `<<>>` are described in prometheus-adapter's docs/config.md.

    Args:
        pods: names.
        window: in place of the rule's, for a test that does not wait a minute.
    """
    filled = str(rule()["metricsQuery"])
    for word, text in (
        (".Series", metric()[0]),
        (".LabelMatchers", f'namespace="sightline",pod=~"{"|".join(pods)}"'),
        (".GroupBy", "pod"),
    ):
        assert f"<<{word}>>" in filled
        filled = filled.replace(f"<<{word}>>", text)
    assert "[1m]" in filled
    return filled.replace("[1m]", f"[{window}]")


def desired(values: Sequence[float]) -> int:
    """Return how many replicas the autoscaler wants, while there are as many as values.

    It is the formula of https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/
    under "Algorithm details": ceil(current replicas x current metric / target), unless the ratio is
    within the tolerance.
    """
    spec = scaler()
    ratio = sum(values) / len(values) / metric()[1]
    wanted = len(values) if abs(ratio - 1) <= TOLERANCE else math.ceil(len(values) * ratio)
    return int(min(max(wanted, spec["minReplicas"]), spec["maxReplicas"]))
