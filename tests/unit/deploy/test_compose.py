"""deploy/compose.yaml: valid, and what it says about settings, files and images is true."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.unit.deploy.test_containerfiles import FILES, exposed
from tests.unit.deploy.variables import loaded, unknown

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy/compose.yaml"
# With the default of each variable, as where none is set.
TEXT = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILE.read_text())
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mounts() -> list[Path]:
    """Return the files and folders of this checkout that are mounted."""
    sources = [mount.partition(":")[0] for one in SERVICES.values() for mount in one["volumes"]]
    return [FILE.parent / source for source in sources if source.startswith(".")]


def check(compose: dict[str, Any]) -> None:
    """Raise ValueError for a file that the Compose specification does not allow."""
    # As JSON, since the checker knows no merge keys of YAML.
    PyCompose.from_json(json.dumps(compose))


def test_it_is_valid() -> None:
    check(COMPOSE)


@pytest.mark.parametrize(("place", "key"), [("ingest", "helthcheck"), ("edge", "comand")])
def test_a_misspelt_key_is_found(place: str, key: str) -> None:
    wrong = deepcopy(COMPOSE)
    wrong["services"][place][key] = {}
    with pytest.raises(ValueError, match=key):
        check(wrong)


@pytest.mark.parametrize("part", FILES)
def test_every_variable_is_a_setting_with_a_valid_value(part: str) -> None:
    variables = SERVICES[part]["environment"]
    assert unknown(variables) == []
    assert loaded(variables, part)


@pytest.mark.parametrize("part", FILES)
def test_an_image_is_built_from_its_file_and_hardened(part: str) -> None:
    one = SERVICES[part]
    build = one["build"]
    assert (FILE.parent / build["context"] / build["dockerfile"]).resolve() == FILES[part]
    assert one["image"].startswith(f"sightline-{part}:")
    assert (one["read_only"], one["cap_drop"]) == (True, ["ALL"])
    ports = {int(port.rpartition(":")[2]) for port in one.get("ports", [])}
    assert ports <= exposed(part)


def test_every_port_is_on_the_loopback_address() -> None:
    ports = [port for one in SERVICES.values() for port in one.get("ports", [])]
    assert len(ports) == 5
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("path", mounts(), ids=lambda path: path.name)
def test_what_is_mounted_is_in_the_checkout(path: Path) -> None:
    top = path.relative_to(FILE.parent).parts[0]
    if top in {"prometheus", "grafana"} and not (FILE.parent / top).exists():
        pytest.skip(f"deploy/{top} is not in this checkout")
    assert path.exists()
