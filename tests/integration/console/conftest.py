"""Both services and consoles as real processes on free ports."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from sightline.cli.processes import ServiceProcess
from tests.integration.auth.services import Client, ingest, serving
from tests.integration.console.http import Browser
from tests.integration.inference.waiting_service import MODULE as WAITING
from tests.unit.inference_service.tiny_onnx import colour_model

SLOW_SECONDS = 2.0
"""Time of a run of the model `slow`, s."""
WHO = {
    # Scopes and devices of each caller.
    "everyone": ("log read infer admin", "*"),
    "reader": ("read", "*"),
    "guard": ("read", "gate-1"),
    "logger": ("log", "*"),
    "asker": ("infer", "*"),
}


@dataclass(frozen=True)
class World:
    """Services that ask for credentials, with a log, and a console before them.

    Attributes:
        ingest: the ingest service; it has three predictions of gate-1 and one of gate-2.
        inference: the inference service, with the models `colours` and `slow`.
        console: the console.
        keys: API key by name of the caller.
    """

    ingest: ServiceProcess
    inference: ServiceProcess
    console: ServiceProcess
    keys: dict[str, str]

    def browser(self, who: str | None = "everyone") -> Browser:
        """Return a client with a caller's key; None: without one."""
        headers = {"Authorization": f"Bearer {self.keys[who]}"} if who else {}
        return Browser(self.console.address, headers)


@contextmanager
def console(folder: Path, *flags: str) -> Iterator[ServiceProcess]:
    """A console that is ready; its log is in the folder's stderr.log."""
    folder.mkdir(exist_ok=True)
    with serving("console_service", folder, *flags) as made:
        yield made


def targets(ingest_address: str, inference_address: str = "127.0.0.1:1") -> list[str]:
    """Return the flags of a console before these services; by default there is no inference."""
    return ["--ingest-target", ingest_address, "--inference-target", inference_address]


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    file = KeyFile(folder / "keys.db")
    keys = {
        name: file.create(name, devices=[devices], scopes=[Scope(s) for s in scopes.split()])[0]
        for name, (scopes, devices) in WHO.items()
    }
    models = folder / "models"
    colour_model(models / "colours" / "1" / "model.onnx")
    colour_model(models / "slow" / "1" / "model.onnx", wait_seconds=SLOW_SECONDS)
    for name in ("inference", "console"):
        (folder / name).mkdir()
    flags = ["--api-keys-file", str(folder / "keys.db")]
    repository = ["--model-repository", str(models), "--default-model", "colours"]
    with ExitStack() as stack:
        log = stack.enter_context(ingest(folder, *flags))
        cloud = stack.enter_context(serving(WAITING, folder / "inference", *flags, *repository))
        front = stack.enter_context(
            console(folder / "console", *targets(log.address, cloud.address))
        )
        client = Client(log, keys["everyone"])
        client.log("gate-1", messages=3)
        client.log("gate-2")
        yield World(log, cloud, front, keys)


@pytest.fixture
def make_console(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Return a function that starts a console with these flags."""
    with ExitStack() as stack:
        yield lambda *flags: stack.enter_context(console(tmp_path / "console", *flags))
