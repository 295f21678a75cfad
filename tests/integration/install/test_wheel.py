"""The wheel that `make wheel` builds: each extra in an environment of its own.

The programs run in an empty folder, so that they see the installed package and not this checkout.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.once import made_once

ROOT = Path(__file__).parents[3]
CLIENT = Path(__file__).with_name("typed_client.py")
PLATES = ROOT / "models/repository/plates/1/model.onnx"
TOP_LEVEL = {
    *("console_service", "edge", "inference_service", "ingest_service"),
    *("servicekit", "sightline", "vision"),
}
HEAVY = ("numpy", "pillow", "duckdb", "pyarrow", "onnxruntime", "torch", "ultralytics", "structlog")
pytestmark = pytest.mark.timeout(400)

LOG_ONE = """
import sys
from sightline import Prediction, PredictionLogger
with PredictionLogger(sys.argv[1], device_id="plain", spool_dir=sys.argv[2]) as log:
    log(Prediction("part-1", "m"))
    assert log.flush(20, until="committed"), log.stats()
"""
DETECT = """
import sys
import numpy
from sightline import OnnxDetector
detector = OnnxDetector(sys.argv[1])
print(type(detector.detect(numpy.zeros((320, 320, 3), numpy.uint8))).__name__)
"""
LIST_MODELS = """
import sys, grpc
from sightline.inference.v1 import inference_service_pb2 as messages
from sightline.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
with grpc.insecure_channel(sys.argv[1]) as channel:
    listed = InferenceServiceStub(channel).ListModels(messages.ListModelsRequest(), timeout=20)
print(*[model.name for model in listed.models])
"""
PROMISES = {
    "": "from sightline import EdgeNode, PredictionLogger; print(EdgeNode, PredictionLogger)",
    "video": "from sightline import Camera, VideoFile; import cv2; print(cv2.__version__)",
    "metrics": "from edge.metrics import NodeMetrics; print(NodeMetrics)",
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, as `make wheel` builds it."""

    def make(folder: Path) -> None:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
        subprocess.run([*build, str(ROOT)], check=True, timeout=300)

    (path,) = made_once(tmp_path_factory, "wheel", make).glob("*.whl")
    return path


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the interpreter of an environment with the wheel and one extra in it.

    One with an extra begins as a copy of the plain one, whose packages pip would only unpack again.
    """

    def make(folder: Path, extra: str) -> None:
        if extra:
            plain = python_with("").parents[1]
            shutil.copytree(plain, folder, True, copy_function=os.link, dirs_exist_ok=True)
        else:
            venv = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
            subprocess.run(venv, check=True, timeout=100)
        python = folder / "bin/python"
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        wanted = f"{wheel}[{extra}]" if extra else str(wheel)
        env = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
        subprocess.run([*pip, "--no-compile", wanted], env=env, check=True, timeout=300)

    def python_with(extra: str) -> Path:
        name = f"with {extra or 'nothing'}"
        folder = made_once(tmp_path_factory, name, lambda folder: make(folder, extra))
        return folder / "bin/python"

    return python_with


def alone() -> dict[str, str]:
    """Return this process's environment without what would lead to this checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=alone(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def serving(folder: Path, python: Path, flags: Sequence[str]) -> Iterator[str]:
    """Run `sightline serve`, and yield the service's address."""
    with subprocess.Popen(
        [python, "-m", "sightline", "serve", *flags, "--listen", "127.0.0.1:0"],
        cwd=folder,
        env=alone(),
        stdout=subprocess.PIPE,
        text=True,
    ) as service:
        try:
            assert service.stdout is not None
            yield json.loads(service.stdout.readline())["address"]
        finally:
            service.terminate()
    assert service.returncode == 0


def test_the_wheel_has_our_packages_and_no_other(wheel: Path) -> None:
    assert re.fullmatch(r"sightline_vision-[\d.]+-py3-none-any\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == TOP_LEVEL
    for package in TOP_LEVEL:
        assert f"{package}/py.typed" in names
    assert "sightline/ingest/v1/ingest_service_pb2.py" in names
    assert "ingest_service/store/duckdb/schema.sql" in names


def test_a_plain_install_brings_the_edge_core_only(
    environment: Callable[[str], Path], tmp_path: Path
) -> None:
    python = environment("")
    site = Path(run(tmp_path, python, "-c", "import sightline; print(sightline.__file__)").strip())
    assert "site-packages" in site.parts
    there = {path.name.lower() for path in site.parents[1].iterdir()}
    assert not [name for name in HEAVY if name in there]
    assert "serve" in run(tmp_path, python.with_name("sightline"), "--help")
    assert "serve" in run(tmp_path, python, "-m", "sightline", "--help")


@pytest.mark.parametrize("extra", PROMISES)
def test_an_extra_brings_what_it_promises(
    extra: str, environment: Callable[[str], Path], tmp_path: Path
) -> None:
    assert run(tmp_path, environment(extra), "-c", PROMISES[extra])


def test_the_ingest_extra_serves_a_node_of_a_plain_install(
    environment: Callable[[str], Path], tmp_path: Path
) -> None:
    flags = ["ingest", "--database", str(tmp_path / "sightline.duckdb")]
    with serving(tmp_path, environment("ingest"), flags) as address:
        run(tmp_path, environment(""), "-c", LOG_ONE, address, tmp_path / "spool")
        assert run(tmp_path, environment(""), CLIENT, address) == "1 1 2\n"


def test_the_inference_extra_serves(environment: Callable[[str], Path], tmp_path: Path) -> None:
    flags = ["inference", "--model-repository", str(PLATES.parents[2])]
    with serving(tmp_path, environment("inference"), flags) as address:
        assert run(tmp_path, environment(""), "-c", LIST_MODELS, address) == "plates\n"


def test_the_onnx_extra_detects(environment: Callable[[str], Path], tmp_path: Path) -> None:
    assert "DetectorResult" in run(tmp_path, environment("onnx"), "-c", DETECT, PLATES)


def test_the_command_says_which_extra_is_missing(
    environment: Callable[[str], Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [environment("").with_name("sightline"), "serve", "ingest"],
        cwd=tmp_path,
        env=alone(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "pip install 'sightline-vision[ingest]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_installed_stubs_are_typed(environment: Callable[[str], Path], tmp_path: Path) -> None:
    """mypy --strict sees the types of the installed package, not of this checkout."""
    program = tmp_path / "typed_client.py"
    program.write_text(CLIENT.read_text())
    python = environment("")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    run(tmp_path, *pip, "types-protobuf", "types-grpcio")
    config = ["--config-file", os.devnull, "--cache-dir", str(tmp_path / "cache")]
    strict = ["--strict", "--python-executable", str(python), *config]
    check = [sys.executable, "-m", "mypy", *strict, str(program)]
    assert "Success" in run(tmp_path, *check)
    program.write_text(CLIENT.read_text().replace("sequence=1", "sequence='one'"))
    done = subprocess.run(
        check, cwd=tmp_path, env=alone(), capture_output=True, text=True, timeout=100
    )
    assert "incompatible type" in done.stdout
