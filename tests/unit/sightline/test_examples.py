"""Every public name has an example in its docstring, and the example does what it says."""

import doctest
from pathlib import Path

import cv2
import numpy as np
import pytest

import sightline
from tests.unit.edge.sources.monitors import save_video
from tests.unit.vision.models import TWO_OBJECTS, save_detector


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a photograph and a video, which the examples call by their names."""
    folder = tmp_path_factory.mktemp("files")
    save_detector(folder / "model.onnx", output=TWO_OBJECTS)
    cv2.imwrite(str(folder / "photo.jpg"), np.zeros((64, 96, 3), np.uint8))
    save_video(folder / "gate.mp4", frames=10)
    return folder


@pytest.mark.parametrize("name", sightline.__all__)
def test_the_example_of_a_public_name_runs(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    docstring = getattr(sightline, name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(docstring, {}, name, None, None)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert tried, f"the docstring of {name} has no example"
    assert not failed, "".join(report)
