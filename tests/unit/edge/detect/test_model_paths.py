"""The path of a model must be text: the runtimes take no other."""

from pathlib import Path

import pytest

from edge.detect import OnnxDetector, UltralyticsDetector
from vision import ModelError


@pytest.mark.parametrize("detector", [OnnxDetector, UltralyticsDetector])
def test_a_path_that_is_no_text_is_refused_with_advice(
    detector: type[OnnxDetector | UltralyticsDetector], tmp_path: Path
) -> None:
    path = tmp_path / "plates-\udcff.onnx"
    path.touch()
    with pytest.raises(ModelError, match=r"plates-\\xff.onnx: rename it, or make a link") as caught:
        detector(path)
    assert caught.value.reason == "MODEL_FILE_INVALID"
