"""What one picture's failure is to a command that has more of them."""

from pathlib import Path

import pytest

from edge import EdgeNode, PredictionLogger
from edge.commands import _log_one
from edge.decide.answer import Mode, Policy
from edge.detect.base import DetectorResult, Image


class Broken:
    name, version = "broken", ""

    def detect(self, image: Image) -> DetectorResult:
        raise RuntimeError("the model [at layer 3] ran out of memory")


def test_whatever_the_model_raises_is_this_pictures_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path / "spool")
    policy = Policy(mode=Mode.DEVICE, backoff=lambda _: 0.0)
    with EdgeNode(Broken(), None, logger, policy) as node:
        assert not _log_one(node, tmp_path / "part-1.jpg")
        assert node.stats().pictures.failed == {"RuntimeError": 1}
    said = " ".join(capsys.readouterr().err.split())
    assert "part-1.jpg: the model [at layer 3] ran out of memory" in said
