"""The readiness probe of deploy/kubernetes/tls, against a service with the overlay's settings."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from sightline.cli.processes import ServiceProcess
from tests.integration.auth.authority import Authority
from tests.unit.inference_service.tiny_onnx import colour_model

ROOT = Path(__file__).parents[3]
MODULES = {"ingest": "ingest_service", "inference": "inference_service"}


@pytest.mark.slow
@pytest.mark.parametrize("part", MODULES)
def test_the_probe_answers_under_mutual_tls_and_needs_its_certificate(
    part: str, tmp_path: Path
) -> None:
    colour_model(tmp_path / "models/colours/1/model.onnx")
    overlay: dict[str, Any] = yaml.safe_load(
        (ROOT / f"deploy/kubernetes/tls/{part}.yaml").read_text()
    )
    (container,) = overlay["spec"]["template"]["spec"]["containers"]
    env = secured(container["env"], part, tmp_path)
    flags = {
        "ingest": ["--database", str(tmp_path / "sightline.duckdb")],
        "inference": ["--model-repository", str(tmp_path / "models")],
    }[part]
    with ServiceProcess(MODULES[part], ["--listen", "127.0.0.1:0", *flags], env=env) as service:
        port = service.address.rpartition(":")[2]
        target = f"SIGHTLINE_EDGE_{part.upper()}_TARGET"
        env[target] = f"{env[target].partition(':')[0]}:{port}"
        probe = container["readinessProbe"]["exec"]["command"]
        assert ask(probe, env).returncode == 0
        for name in ("SIGHTLINE_EDGE_TLS_CERT_FILE", "SIGHTLINE_EDGE_TLS_KEY_FILE"):
            del env[name]
        assert ask(probe, env).returncode == 1


def secured(variables: list[dict[str, str]], part: str, folder: Path) -> dict[str, str]:
    """Return the overlay's variables, with the files of its secret in a folder."""
    authority = Authority()
    certificate, key = authority.issue(part, names=[x509.DNSName("localhost")])
    for name, content in (("ca.crt", authority.pem), ("tls.crt", certificate), ("tls.key", key)):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o440)  # as the overlay mounts them
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    named = {one["name"]: one["value"].replace("/tls/", f"{folder}/") for one in variables}
    return {**clean, **named, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"}


def ask(probe: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the command of the probe as the kubelet does."""
    program, *words = probe
    return subprocess.run(
        [sys.executable, "-m", program, *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
