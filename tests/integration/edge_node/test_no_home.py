"""A user that is only a number, without HOME, as `docker run -u 54321` makes it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.terminal import ROOT, SIGHTLINE, Done
from tests.unit.edge.sources.monitors import save_pictures
from tests.unit.inference_service.tiny_onnx import colour_model

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
STRANGER = [
    *("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"),
    # The interpreter may be in a folder of root's; nothing may be written there.
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
]
SENTENCE = "spool_dir: must be given (--spool-dir or SIGHTLINE_EDGE_SPOOL_DIR)"
LOGGER = [sys.executable, "-c", "from sightline import PredictionLogger as P; P(device_id='g')"]


def as_stranger(folder: Path, *words: object, **env: str) -> Done:
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", **env}
    return subprocess.run(
        [*STRANGER, *map(str, words)],
        env={"SIGHTLINE_EDGE_DEVICE_ID": "gate-1", "PYTHONDONTWRITEBYTECODE": "1", **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Yield a folder that the stranger may read, with a model and a folder of images."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        save_pictures(folder / "images", "1.jpg")
        colour_model(folder / "colours.onnx")
        yield folder


@pytest.mark.parametrize(
    "words",
    [
        ("spool", "ls"),
        ("spool", "verify"),
        ("log", "images", "--model", "colours.onnx", "--mode", "device"),
    ],
    ids=lambda words: words[0] + words[1],
)
def test_a_command_names_the_setting(place: Path, words: tuple[str, ...]) -> None:
    done = as_stranger(place, *SIGHTLINE, *words)
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"sightline: {SENTENCE}")
    assert done.returncode == 2


def test_doctor_reports_it_and_checks_the_rest(place: Path) -> None:
    done = as_stranger(place, *SIGHTLINE, "doctor", "--model", "colours.onnx")
    assert SENTENCE in done.stdout
    assert "ok      model" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("home", "said"),
    [
        (None, f"servicekit.settings.SettingsError: {SENTENCE}"),
        ("/", "PermissionError: [Errno 13] the spool folder /.local/state/sightline/g cannot be"),
    ],
)
def test_the_logger_says_what_to_set(place: Path, home: str | None, said: str) -> None:
    done = as_stranger(place, *LOGGER, **({} if home is None else {"HOME": home}))
    last = done.stderr.splitlines()[-1]
    assert last.startswith(said)
    assert "spool_dir" in last


@pytest.mark.parametrize("detector", ["onnx", pytest.param("ultralytics", marks=pytest.mark.slow)])
def test_a_node_logs_to_the_folder_that_is_given(place: Path, detector: str) -> None:
    own = place / detector
    own.mkdir()
    own.chmod(0o777)
    words = ["log", "images", "--model", "colours.onnx", "--mode", "device"]
    words += ["--spool-dir", f"{detector}/spool", "--detector", detector, "--wait", "0"]
    env = {"YOLO_OFFLINE": "true", "TMPDIR": str(own)}
    done = as_stranger(place, *SIGHTLINE, *words, **env)
    assert "1 prediction logged" in done.stdout, done.stderr
    assert (own / "spool/spool.db").stat().st_uid == 54321
    assert not list(own.glob("sightline-*")), "no folder for a home is left"
