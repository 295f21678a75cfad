"""The failure of one image in a run of several."""

import io
import time
from pathlib import Path

from rich.console import Console

from edge.commands.live import Display
from edge.commands.log import _report
from edge.commands.summary import glance
from edge.decide.policy import Mode, Policy
from edge.detect.base import DetectorResult, Image
from sightline import EdgeNode, PredictionLogger
from tests.unit.edge.sources.monitors import save_pictures


class Broken:
    name, version = "broken", ""

    def detect(self, image: Image) -> DetectorResult:
        raise RuntimeError("the model [at layer 3] ran out of memory")


def test_whatever_the_model_raises_is_this_images_failure(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "part-1.jpg")
    logger = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path / "spool")
    policy = Policy(mode=Mode.DEVICE, backoff=lambda _: 0.0)
    said = io.StringIO()
    with EdgeNode(Broken(), None, logger, policy) as node:
        with Display(
            Console(file=said), lambda: glance([node.stats()], []), time.monotonic
        ) as display:
            for outcome in node.run(folder):
                _report(outcome, display)
        assert glance([node.stats()], []).failed == 1
    raised = "the device's model raised RuntimeError: the model [at layer 3] ran out of memory"
    assert f"part-1.jpg: {raised}" in said.getvalue()
