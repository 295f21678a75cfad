"""A repository of models whose changes are followed, for tests."""

from collections.abc import Callable
from pathlib import Path

from inference_service.models.engine import Model
from inference_service.models.loader import Runtime, load_model
from inference_service.models.repository import Models, Repository
from tests.unit.inference_service.tiny_onnx import colour_model


def load(path: Path) -> Model:
    return load_model(path, Runtime())


def repository(folder: Path, *versions: str) -> Path:
    for version in versions:
        colour_model(folder / version / "model.onnx")
    return folder


def broken(folder: Path, version: str) -> None:
    (folder / version).mkdir(parents=True, exist_ok=True)
    (folder / version / "model.onnx").write_bytes(b"no model")


class Followed:
    """A repository, what it has published, and which models it could not load."""

    def __init__(
        self,
        folder: Path,
        default: str = "",
        pinned: dict[str, str] | None = None,
        load: Callable[[Path], Model] = load,
    ) -> None:
        self.models = Models([], "")
        self.failures: list[str] = []
        self.published = 0
        self.repository = Repository(
            folder,
            default=default,
            pinned=pinned or {},
            load=load,
            publish=self.publish,
            on_failure=self.failures.append,
        )
        self.repository.start()

    def publish(self, models: Models) -> None:
        self.models = models
        self.published += 1

    def poll(self, times: int = 1) -> None:
        for _ in range(times):
            self.repository.poll()

    @property
    def loaded(self) -> list[str]:
        return [f"{model.name}/{model.version}" for model in self.models.all]

    def labels(self, name: str = "", version: str = "") -> list[str]:
        return list(self.models.find(name, version).network.names.values())


def yaml(folder: Path, text: str) -> Path:
    path = repository(folder, "a/1") / "a" / "1"
    (path / "model.yaml").write_text(text)
    return path
