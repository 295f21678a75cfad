"""Tests that run the commands of the documentation as they are printed."""

import subprocess
from pathlib import Path

import pytest

from models.plates import make_plate, to_jpeg
from sightline.cli.processes import ServiceProcess
from tests.default_ports import moved
from tests.pages import blocks

PAGES = {"ingest": "how-to/call-ingest.md", "inference": "how-to/call-inference.md"}


def commands(service: str) -> list[str]:
    """Return the grpcurl blocks of a service's page."""
    started, *rest = blocks(PAGES[service])
    assert started.startswith(f"sightline serve {service} ")
    assert all("grpcurl" in block for block in rest)
    return rest


@pytest.mark.parametrize("name", PAGES)
def test_every_grpcurl_command_works(
    name: str, grpcurl: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    service: ServiceProcess = request.getfixturevalue(name)
    (tmp_path / "part.jpg").write_bytes(to_jpeg(make_plate(3).image))
    page_commands = commands(name)
    assert len(page_commands) >= 5
    for command in page_commands:
        here = moved(command, **{name: service.address})
        done = subprocess.run(
            ["bash", "-c", here],
            cwd=tmp_path,
            env={"PATH": f"{Path(grpcurl).parent}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_logging_twice_doubles_nothing(
    grpcurl: str, ingest: ServiceProcess, tmp_path: Path
) -> None:
    (command,) = [command for command in commands("ingest") if "PredictionLog\n" in command]
    command = moved(command, ingest=ingest.address).replace("gate-1", "gate-twice")
    answers = [
        subprocess.run(
            ["bash", "-c", command],
            env={"PATH": f"{Path(grpcurl).parent}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert '"accepted": "2"' in answers[0]
    assert '"duplicates": "2"' in answers[1]
