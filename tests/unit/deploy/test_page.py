"""The page how-to/deploy.md: its files, commands, variables and kustomizations exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from sightline.cli.app import app
from tests.pages import blocks, text
from tests.unit.deploy.test_containerfiles import FILES
from tests.unit.deploy.variables import unknown

ROOT = Path(__file__).parents[3]
PAGE = "how-to/deploy.md"
COMMANDS = [
    words
    for block in blocks(PAGE)
    for line in block.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line))
]


def test_every_file_of_a_command_is_in_the_checkout() -> None:
    named = set(
        re.findall(
            r"(?<![\w/.-])(?:\./)?((?:deploy|examples|models)/[\w./@-]+)",
            "\n".join(blocks(PAGE)) + text(PAGE),
        )
    )
    assert len(named) > 12
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_variable_is_a_setting() -> None:
    named = re.findall(r"SIGHTLINE_\w+", text(PAGE))
    assert len(named) > 10
    assert unknown(named) == []


def test_every_image_that_runs_is_built() -> None:
    built = {words[words.index("-t") + 1] for words in COMMANDS if words[:2] == ["podman", "build"]}
    assert built == {f"sightline-{part}:0.1.0" for part in FILES}
    used = {
        word
        for words in COMMANDS
        if words[:2] == ["podman", "run"]
        for word in words
        if word.startswith("sightline-")
    }
    assert used == built


def test_every_build_argument_is_one_of_a_file() -> None:
    named = set(re.findall(r"^\| `(\w+)=", text(PAGE), re.MULTILINE))
    declared = {
        name
        for file in FILES.values()
        for name in re.findall(r"^ARG (\w+)", file.read_text(), re.MULTILINE)
    }
    assert named
    assert named <= declared


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[0] == "sightline"], ids=" ".join
)
def test_every_command_of_ours_exists(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    assert words[1] in command.commands


def test_every_extra_that_is_installed_exists() -> None:
    extras = set(re.findall(r"\.\[([\w,-]+)\]", text(PAGE)))
    project = (ROOT / "pyproject.toml").read_text()
    named = {one for extra in extras for one in extra.split(",")}
    assert [name for name in named if not re.search(rf"^{name} = \[", project, re.MULTILINE)] == []
