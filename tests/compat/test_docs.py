"""The commands that the documentation asks people to copy are run as they stand."""

import re
import subprocess
from pathlib import Path

import pytest

from models.plates import make_plate, to_jpeg
from sightline.cli.processes import ServiceProcess
from tests.compat.conftest import ROOT
from tests.default_ports import moved

PAGES = ("ingest", "inference")


def commands(page: str) -> list[str]:
    """Returns the grpcurl blocks of a page, as they are printed."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return [
        block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "grpcurl" in block
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_grpcurl_command_works(
    page: str, grpcurl: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    service: ServiceProcess = request.getfixturevalue(page)
    (tmp_path / "part.jpg").write_bytes(to_jpeg(make_plate(3).image))
    found = commands(page)
    assert len(found) >= 5
    for command in found:
        here = moved(command, **{page: service.address})
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
    (command,) = [one for one in commands("ingest") if "PredictionLog\n" in one]
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
