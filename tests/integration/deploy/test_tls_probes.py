"""The probes of deploy/kubernetes/tls, against services with the overlay's settings."""

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from sightline.cli.processes import ServiceProcess
from tests.integration.auth.authority import Authority
from tests.unit.inference_service.tiny_onnx import colour_model

ROOT = Path(__file__).parents[3]
MODULES = {"ingest": "ingest_service", "inference": "inference_service"}


@pytest.mark.slow
@pytest.mark.parametrize("part", MODULES)
def test_probes_without_a_certificate_are_answered_under_mutual_tls(
    part: str, tmp_path: Path
) -> None:
    overlay: dict[str, Any] = yaml.safe_load(
        (ROOT / f"deploy/kubernetes/tls/{part}.yaml").read_text()
    )
    (container,) = overlay["spec"]["template"]["spec"]["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert {probe["port"] for probe in probes} == {"metrics"}
    flags = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    flags += {
        "ingest": ["--database", str(tmp_path / "sightline.duckdb")],
        "inference": ["--model-repository", str(tmp_path / "models")],
    }[part]
    colour_model(tmp_path / "models/colours/1/model.onnx")
    env = secured(container["env"], part, tmp_path)
    with ServiceProcess(MODULES[part], flags, env=env) as service:
        metrics = service.ready["metrics_address"]
        assert [ask(f"http://{metrics}{probe['path']}") for probe in probes] == [200] * 3


def secured(variables: list[dict[str, str]], part: str, folder: Path) -> dict[str, str]:
    """Return the overlay's variables, with the files of its secret in a folder."""
    authority = Authority()
    certificate, key = authority.issue(part)
    for name, content in (("ca.crt", authority.pem), ("tls.crt", certificate), ("tls.key", key)):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o440)  # as the overlay mounts them
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    named = {one["name"]: one["value"].replace("/tls/", f"{folder}/") for one in variables}
    return {**clean, **named, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"}


def ask(url: str) -> int:
    """Return the status of an answer, as the kubelet sees it."""
    try:
        with urllib.request.urlopen(url, timeout=30) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        return error.code
