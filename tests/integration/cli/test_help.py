"""The help of every command, and the completion of a shell."""

import inspect
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from edge.__main__ import app as edge_app
from edge.settings import EdgeSettings
from servicekit.distribution import version
from sightline.cli.app import app
from tests.integration.cli.terminal import ROOT, environment, sightline


def commands(group: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


SIGHTLINE = dict(commands(typer.main.get_command(app)))
SHOWN = [name for name in SIGHTLINE if name[0] != "serve"]
"""Commands whose help this process can print: those of `serve` become the service."""
EDGE = dict(commands(typer.main.get_command(edge_app)))


def test_every_command_is_there() -> None:
    assert {name[0] for name in SIGHTLINE} == {
        *("serve", "up", "keys", "models", "log", "infer", "doctor", "spool", "stats"),
        *("export", "readmit", "backup", "restore", "health"),
        *("devices", "ledger", "gaps", "rejections", "show", "tail", "sql"),
        *("series", "confidence", "versions", "frame"),
    }
    assert {name[0] for name in EDGE} == {"log", "infer", "doctor", "spool"}


@pytest.mark.parametrize("name", SIGHTLINE, ids=" ".join)
def test_help_is_a_line_then_an_example_of_the_command_itself(name: tuple[str, ...]) -> None:
    first, second, *_ = inspect.cleandoc(SIGHTLINE[name].help or "").split("\n\n")
    assert "Example" not in first
    assert second.startswith(f"Example: sightline {' '.join(name)}")


@pytest.mark.parametrize(
    "words", [["--help"], ["log", "--help"], ["spool", "--help"], ["spool", "repair", "--help"]]
)
def test_help_names_the_program_that_was_typed(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge", *words],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: python -m edge {' '.join(words[:-1])}".rstrip() in done.stdout
    assert "Example: sightline" not in done.stdout
    if words[-2:] in (["log", "--help"], ["repair", "--help"]):
        assert f"Example: python -m edge {words[0]}" in done.stdout


@pytest.mark.parametrize(
    "program",
    [
        ["-m", "sightline"],
        ["-m", "edge"],
        ["-m", "ingest_service"],
        ["-m", "inference_service"],
        ["-m", "sightline", "serve", "ingest"],
        ["-m", "sightline", "serve", "inference"],
    ],
    ids=" ".join,
)
def test_every_program_has_its_version(program: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *program, "--version"],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"sightline {version()}\n"), done.stderr


@pytest.mark.parametrize("service", ["ingest", "inference"])
def test_a_service_shows_a_short_first_group_and_an_advanced_one(service: str) -> None:
    done = sightline("serve", service, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: sightline serve {service} [OPTIONS]" in done.stdout
    assert f"Example: sightline serve {service}" in done.stdout
    basic, advanced = done.stdout.split("Advanced")
    assert "--listen" in basic
    assert "--max-message-bytes" in advanced
    assert basic.count(" --") < 16 < advanced.count("│ --")


def test_every_setting_of_a_node_is_a_flag_of_log() -> None:
    done = sightline("log", "--help", env={**environment(), "COLUMNS": "200"})
    flags = {flag for option in SIGHTLINE["log",].params for flag in option.opts}
    settings = {f"--{name.replace('_', '-')}" for name in EdgeSettings.model_fields}
    assert settings <= flags
    basic, advanced = done.stdout.split("Advanced")
    assert "--label" in basic
    assert "--breaker-seconds" in advanced
    assert "--breaker-seconds" not in basic


@pytest.mark.parametrize("words", [[], ["spool"], *SHOWN], ids=" ".join)
def test_h_is_help(words: Sequence[str]) -> None:
    short, long = (CliRunner().invoke(app, [*words, flag]) for flag in ("-h", "--help"))
    assert (short.exit_code, short.output) == (0, long.output)
    assert "Usage: " in short.output


@pytest.mark.parametrize("service", ["ingest", "inference"])
@pytest.mark.parametrize("name", SHOWN, ids=" ".join)
def test_an_address_has_one_flag_in_the_help_and_others_work(
    name: tuple[str, ...], service: str
) -> None:
    command = SIGHTLINE[name]
    shown = {flag for one in command.params if not one.hidden for flag in one.opts}
    assert not shown & {"--target", "--address", f"--{service}-target"}
    if f"--{service}" not in shown:
        return
    others = [f"--{service}-target"]
    if not {"--ingest", "--inference"} <= shown:
        others += ["--target", "--address"]
    context = command.make_context(name[-1], [], resilient_parsing=True)
    for flag in (f"--{service}", *others):
        options, _, _ = command.make_parser(context).parse_args([flag, "host:1"])
        assert [value for value in options.values() if value] == ["host:1"]


@pytest.mark.parametrize("name", SIGHTLINE, ids=" ".join)
def test_every_option_says_what_it_is(name: tuple[str, ...]) -> None:
    mute = [one.name for one in SIGHTLINE[name].params if not getattr(one, "help", None)]
    assert mute == []


def test_help_of_a_command_as_it_is_printed() -> None:
    done = sightline("infer", "--help")
    assert done.returncode == 0
    assert "Example: sightline infer part-1.jpg" in done.stdout
    assert "--save" in done.stdout


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which `sightline` is a command, as after an installation."""
    script = tmp_path / "bin" / "sightline"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom sightline.cli.app import main\nmain()\n")
    script.chmod(0o755)
    env = environment()
    paths = f"{ROOT}:{ROOT / 'generated'}:{env.get('PYTHONPATH', '')}"
    return {**env, "PATH": f"{script.parent}:{env['PATH']}", "PYTHONPATH": paths}


def bash(script: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bash_completes_commands_and_options(installed: dict[str, str]) -> None:
    assert "complete -o default" in bash("sightline --show-completion; true", installed)
    complete = """
        eval "$(sightline --show-completion)"
        COMP_WORDS=(sightline do) COMP_CWORD=1
        _sightline_completion sightline; echo "${COMPREPLY[@]}"
        COMP_WORDS=(sightline infer --sa) COMP_CWORD=2
        _sightline_completion sightline; echo "${COMPREPLY[@]}"
    """
    assert bash(complete, installed).split() == ["doctor", "--save"]


def test_completion_can_be_installed(installed: dict[str, str], tmp_path: Path) -> None:
    home = {**installed, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    said = bash("sightline --install-completion; true", home)
    assert "installed" in said
    assert "sightline" in (tmp_path / ".bashrc").read_text()
    assert (tmp_path / ".bash_completions" / "sightline.sh").is_file()
