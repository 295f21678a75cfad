"""`pip install sightline` in an environment of its own: the edge core and no more, and typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.cli.processes import ServiceProcess

ROOT = Path(__file__).parents[3]
CLIENT = Path(__file__).with_name("typed_client.py")
HEAVY = ("numpy", "pillow", "duckdb", "pyarrow", "onnxruntime", "torch", "ultralytics", "structlog")
LOG_ONE = """
import sys
from sightline import Prediction, PredictionLogger
with PredictionLogger(sys.argv[1], device_id="plain", spool_dir=sys.argv[2]) as log:
    log(Prediction("part-1", "m"))
    assert log.flush(20, until="committed"), log.stats()
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with nothing but a plain install."""
    folder = tmp_path_factory.mktemp("plain")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=100)
    python = folder / "venv/bin/python"
    env = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    install = [str(python), "-m", "pip", "install", "--quiet", str(ROOT)]
    subprocess.run(install, env=env, check=True, timeout=300)
    return python


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(400)
def test_a_plain_install_brings_the_edge_core_only(python: Path, tmp_path: Path) -> None:
    listed = run(python, "-m", "pip", "list", "--format=freeze").lower()
    assert not [name for name in HEAVY if f"\n{name}" in f"\n{listed}"]
    flags = ["--listen", "127.0.0.1:0", "--database", str(tmp_path / "sightline.duckdb")]
    with ServiceProcess("ingest_service", flags) as ingest:
        run(python, "-c", LOG_ONE, ingest.address, tmp_path / "spool")
        assert run(python, CLIENT, ingest.address) == "1 1 2\n"


def test_the_command_says_which_extra_is_missing(python: Path) -> None:
    done = subprocess.run(
        [python.with_name("sightline"), "serve", "ingest"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "pip install 'sightline[ingest]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_installed_stubs_are_typed(python: Path, tmp_path: Path) -> None:
    """mypy --strict sees the types of the installed package, not of this checkout."""
    program = tmp_path / "typed_client.py"
    program.write_text(CLIENT.read_text())
    config = ["--config-file", os.devnull, "--cache-dir", str(tmp_path / "cache")]
    strict = ["--strict", "--python-executable", str(python), *config]
    run(python, "-m", "pip", "install", "--quiet", "types-protobuf", "types-grpcio")
    subprocess_env = [sys.executable, "-m", "mypy", *strict, str(program)]
    assert "Success" in run(*subprocess_env)
    program.write_text(CLIENT.read_text().replace("sequence=1", "sequence='one'"))
    done = subprocess.run(subprocess_env, capture_output=True, text=True, timeout=100)
    assert "incompatible type" in done.stdout
