"""The front door: what `from sightline import ...` gives."""

import subprocess
import sys
from importlib import metadata

import pytest

import sightline
from edge.log.logger import PredictionLogger
from edge.records import Prediction


def test_public_names_can_be_imported() -> None:
    assert sightline.PredictionLogger is PredictionLogger
    assert sightline.Prediction is Prediction
    for name in sightline.__all__:
        assert getattr(sightline, name) is not None
    assert set(dir(sightline)) == set(sightline.__all__)
    with pytest.raises(AttributeError, match="Elephant"):
        _ = sightline.Elephant


def test_the_version_is_that_of_the_distribution() -> None:
    assert sightline.__version__ == metadata.version("sightline-vision")


def test_the_stubs_are_in_the_same_package() -> None:
    from sightline.ingest.v1 import ingest_service_pb2

    assert ingest_service_pb2.DESCRIPTOR.package == "sightline.ingest.v1"


def test_a_name_loads_nothing_that_it_does_not_need() -> None:
    program = (
        "import sys; from sightline import PredictionLogger; "
        "print(*{'duckdb', 'numpy', 'cv2', 'onnxruntime', 'typer'} & sys.modules.keys())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == []


@pytest.mark.slow
def test_the_command_line_runs_as_a_module() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "sightline", "--help"], capture_output=True, text=True, check=True
    )
    assert "sightline" in ran.stdout
    assert "serve" in ran.stdout
