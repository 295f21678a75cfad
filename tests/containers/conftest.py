"""The images, built once, and a table of them at the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.containers import podman
from tests.containers.podman import Image, PodmanError
from tests.unit.inference_service.tiny_onnx import colour_model

SERVICES = ("ingest", "inference", "console", "edge")
_COLUMNS = ("size", "build", "ready in", "drain in", "user", "capabilities", "read-only root")
_BUILT: list[Image] = []


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Image]]:
    """The image of each service; skips with a sentence where none can be built."""
    if why := podman.obstacle():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("images")
    try:
        podman.make_base(folder)
    except PodmanError as error:
        pytest.skip(f"no container runs here: {error}")
    wheels = podman.download_wheels(folder)
    built = {service: podman.build(service, wheels) for service in SERVICES}
    _BUILT.extend(built.values())
    yield built
    for image in built.values():
        podman.podman("rmi", "--force", image.tag)


@pytest.fixture(params=SERVICES)
def image(images: dict[str, Image], request: pytest.FixtureRequest) -> Image:
    """Each image in turn."""
    return images[request.param]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that every user of a container may read."""
    folder = tmp_path_factory.mktemp("models")
    colour_model(folder / "colours/1/model.onnx")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a row for each image that was built."""
    if not _BUILT:
        return
    table = Table("service", *_COLUMNS, title="Containers")
    for image in _BUILT:
        facts = {"build": f"{image.build_seconds:.0f} s", **image.facts}
        table.add_row(image.service, *(facts.get(column, "-") for column in _COLUMNS))
    console = Console(width=120)
    with console.capture() as text:
        console.print(table)
    terminalreporter.write(text.get())
