"""The container files: what they say about settings, users and commands is true of the code."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from servicekit.settings import Settings
from sightline.cli.read import ServiceName
from tests.unit.deploy.variables import loaded, unknown

ROOT = Path(__file__).parents[3]
FILES = {
    part: ROOT / f"deploy/containers/Containerfile.{part}"
    for part in ("ingest", "inference", "console", "edge")
}
PACKAGES = (
    *("console_service", "edge", "ingest_service", "inference_service"),
    *("servicekit", "vision", "sightline"),
)


def final_stage(part: str) -> str:
    """Return the instructions of the image itself, each on one line."""
    text = FILES[part].read_text().replace("\\\n", " ")
    return text.rpartition("\nFROM ")[2]


def environment(part: str) -> dict[str, str]:
    """Return the variables that the image sets."""
    lines = re.findall(r"^ENV (.+)$", final_stage(part), re.MULTILINE)
    return dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))


def exposed(part: str) -> set[int]:
    """Return the ports that the image documents."""
    lines = re.findall(r"^EXPOSE (.+)$", final_stage(part), re.MULTILINE)
    return {int(port) for line in lines for port in line.split()}


@pytest.mark.parametrize("part", FILES)
def test_every_variable_is_a_setting_with_a_valid_value(part: str) -> None:
    assert unknown(environment(part)) == []
    assert loaded(environment(part), part)


@pytest.mark.parametrize("part", FILES)
def test_the_exposed_ports_are_those_that_are_served(part: str) -> None:
    settings: Settings = loaded(environment(part), part)
    addresses = [getattr(settings, name, "") for name in ("listen", "metrics_listen")]
    assert exposed(part) == {int(one.rpartition(":")[2]) for one in addresses if one}


@pytest.mark.parametrize("part", FILES)
def test_no_image_runs_as_root_and_each_is_of_this_version(part: str) -> None:
    stage = final_stage(part)
    assert re.findall(r"^USER (.+)$", stage, re.MULTILINE) == ["65532:65532"]
    assert "STOPSIGNAL SIGTERM" in stage
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^ARG VERSION=(.+)$", stage, re.MULTILINE) == [version]


@pytest.mark.parametrize("part", list(ServiceName))
def test_a_service_is_asked_for_its_health(part: ServiceName) -> None:
    (command,) = re.findall(r"^HEALTHCHECK .*CMD (\[.+\])$", final_stage(part), re.MULTILINE)
    assert f'"health", "--service", "{part}"' in command


def test_the_console_is_asked_for_its_readiness_where_there_is_no_tls() -> None:
    stage = final_stage("console")
    (command,) = re.findall(r"^HEALTHCHECK .*CMD \[(.+)\]$", stage, re.MULTILINE)
    port = environment("console")["SIGHTLINE_CONSOLE_METRICS_LISTEN"].rpartition(":")[2]
    assert f"http://127.0.0.1:{port}/readyz" in command


def test_the_build_sees_each_package_and_no_file_of_a_machine() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert lines[1] == "*", "everything that is not named stays out"
    assert {*PACKAGES, "generated", "constraints.txt", "pyproject.toml"} <= allowed
    assert [name for name in allowed if not (ROOT / name).exists()] == []
