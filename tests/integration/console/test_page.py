"""The commands of how-to/console.md, as they are printed, against real services."""

import json
import os
import shlex
import subprocess
from pathlib import Path

from console_service.settings import ConsoleSettings
from servicekit.settings import load
from tests.compat.conftest import require
from tests.integration.console.conftest import World
from tests.integration.console.test_reads import JQ
from tests.pages import blocks, text
from tests.unit.inference_service.tiny_onnx import picture

PAGE = "how-to/console.md"
START, READ, INFER, LIVE, SESSION = blocks(PAGE)


def typed(block: str, world: World, folder: Path) -> list[str]:
    """Return what each command of a block prints, run as a person would with a key."""
    require(JQ, "`make compat` brings Debian's jq")
    moved = block.replace("127.0.0.1:8080", world.console.address).replace("jq ", f"{JQ} ")
    moved = moved.replace("plates", "colours").replace("$(uuidgen)", "$(cat uuid)")
    (folder / "uuid").write_text("6f1c2b0e-9f0a-4b6e-8a52-3f4c8f0d1a11")
    (folder / "part.jpg").write_bytes(picture())
    (folder / ".curlrc").write_text("")
    key = world.keys["everyone"]
    if "cookies" not in moved:
        (folder / ".curlrc").write_text(f'header = "Authorization: Bearer {key}"\n')
    env = {**os.environ, "CURL_HOME": str(folder), "KEY": key}
    printed = []
    for command in moved.replace("\\\n", " ").splitlines():
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=60
        )
        printed.append(done.stdout)
    return printed


def test_the_flags_of_the_start_are_settings() -> None:
    (command,) = [line for line in START.splitlines() if line.startswith("sightline serve")]
    settings = load(ConsoleSettings, shlex.split(command)[3:], prog="console")
    assert settings.ingest_target == "127.0.0.1:50051"


def test_what_is_read_is_json(world: World, tmp_path: Path) -> None:
    health, rate, devices, first, cloud = map(json.loads, typed(READ, world, tmp_path))
    assert health["status"] == "ready"
    assert (rate, devices) == (0, {"gate-1": 3, "gate-2": 1})
    assert first["device_id"] == "gate-1"
    assert cloud["total_predictions"] == 0


def test_an_image_is_answered(world: World, tmp_path: Path) -> None:
    form, parameters, body = map(json.loads, typed(INFER, world, tmp_path))
    assert form[0]["class_name"] == "red"
    assert parameters["model_name"] == body["model_name"] == "colours"


def test_a_session_is_begun_with_a_key(world: World, tmp_path: Path) -> None:
    _, devices = typed(SESSION, world, tmp_path)
    assert [one["device_id"] for one in json.loads(devices)["devices"]] == ["gate-1", "gate-2"]


def test_the_page_names_every_route(world: World) -> None:
    routes = world.browser().get("/openapi.json").json["paths"]
    page = text(PAGE).replace("{device}/{spool}", "{device_id}/{spool_id}")
    assert [path for path in routes if f"`{path}`" not in page.replace("POST ", "")] == []
