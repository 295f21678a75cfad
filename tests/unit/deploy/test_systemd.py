"""deploy/systemd: units that systemd accepts, hardened, and true of the code."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ingest_service.settings import IngestSettings
from sightline.cli.app import app
from tests.unit.deploy.variables import loaded, unknown

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/systemd"
UNITS = {
    "ingest": "sightline-ingest.service",
    "inference": "sightline-inference.service",
    "edge": "sightline-log@.service",
}
WORST_EXPOSURE = 2.5
"""Of `systemd-analyze security`: 10 is a unit without any setting, "OK" ends at 5."""


@pytest.fixture(params=UNITS)
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def directives(part: str) -> list[tuple[str, str]]:
    """Return the directives of a unit in their order."""
    text = (FOLDER / UNITS[part]).read_text()
    lines = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
    return [(name, value) for name, value in lines]


def last(part: str, name: str) -> str:
    """Return the value of a directive that stands once."""
    (value,) = [value for one, value in directives(part) if one == name]
    return value


def variables(part: str) -> dict[str, str]:
    words = [
        word
        for name, value in directives(part)
        if name == "Environment"
        for word in shlex.split(value)
    ]
    return dict(word.split("=", 1) for word in words)


def analyze(*words: str | Path) -> tuple[int, str]:
    """Run systemd-analyze; skip the test where it is not installed."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here: Debian's package systemd has it")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def installed(part: str, folder: Path) -> Path:
    """Return a copy of the unit whose program exists on this machine."""
    text = (FOLDER / UNITS[part]).read_text()
    copy = folder / UNITS[part]
    copy.write_text(text.replace("/opt/sightline/bin/sightline", sys.executable))
    return copy


def test_systemd_accepts_the_unit(part: str, tmp_path: Path) -> None:
    code, said = analyze("verify", installed(part, tmp_path))
    assert (code, said) == (0, "")


def test_systemd_finds_a_misspelt_directive(tmp_path: Path) -> None:
    unit = installed("ingest", tmp_path)
    unit.write_text(unit.read_text().replace("RestartSec=", "RestartSecs="))
    assert "RestartSecs" in analyze("verify", unit)[1]


def test_the_unit_is_hardened(part: str, tmp_path: Path) -> None:
    _, said = analyze("security", "--offline=yes", "--no-pager", installed(part, tmp_path))
    if "Overall exposure level" not in said:
        pytest.skip(f"this systemd-analyze judges no unit without a running systemd: {said}")
    level = re.search(r"Overall exposure level for (\S+): ([\d.]+)", said)
    assert level, said
    print(f"{level[1]}: exposure {level[2]}")  # noqa: T201 - `pytest -rP` shows it
    assert float(level[2]) <= WORST_EXPOSURE


def test_every_variable_is_a_setting_with_a_valid_value(part: str) -> None:
    assert unknown(variables(part)) == []
    assert loaded(variables(part), part)


def test_it_runs_a_command_that_exists(part: str) -> None:
    program, *words = last(part, "ExecStart").split()
    assert program == "/opt/sightline/bin/sightline"
    command: Any = typer.main.get_command(app)
    for word in words:
        if word.startswith("$"):
            break
        command = command.commands[word]
    assert command.name == words[-1] or command.name == "log"


def test_a_service_has_the_time_to_drain(part: str) -> None:
    seconds = int(last(part, "TimeoutStopSec").removesuffix("s"))
    grace = IngestSettings.model_fields["grace_seconds"].default
    assert seconds > grace * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "words", "wrong"),
    [
        ("ingest", ["ingest_service"], "SIGHTLINE_INGEST_LOG_LEVEL"),
        ("edge", ["sightline", "log", "x.jpg"], "SIGHTLINE_EDGE_MODE"),
    ],
)
def test_a_wrong_setting_is_not_tried_again(part: str, words: list[str], wrong: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env={wrong: "none", "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert str(done.returncode) == last(part, "RestartPreventExitStatus"), done.stderr
