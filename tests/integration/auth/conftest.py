from collections.abc import Callable
from pathlib import Path

import pytest

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from tests.unit.inference_service.tiny_onnx import colour_model

MakeKey = Callable[..., str]


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    """A file of API keys, with one in it."""
    file = KeyFile(tmp_path / "keys.db")
    file.create("someone", devices=["*"], scopes=list(Scope))
    return file


@pytest.fixture
def key(keys: KeyFile) -> MakeKey:
    """Makes a key: its name, its scopes and, if they are not its name, its devices."""

    def make(name: str, scopes: str = "log", devices: str = "") -> str:
        return keys.create(
            name, devices=(devices or name).split(), scopes=[Scope(s) for s in scopes.split()]
        )[0]

    return make


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a quick model."""
    folder = tmp_path_factory.mktemp("colours")
    colour_model(folder / "colours" / "1" / "model.onnx")
    return folder
