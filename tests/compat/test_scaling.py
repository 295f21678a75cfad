"""The autoscaler's metric: a real service under load and at rest, scraped by a real Prometheus."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.compat import scaling
from tests.compat.test_monitoring import api, eventually, is_ready, listening
from tests.integration.inference.process import ask, client, started
from tests.unit.inference_service.tiny_onnx import colour_model, picture

POD = "inference-0"
"""Name of the pod in which the service counts as running."""
WAITING = 40
"""Pictures that are sent at once, of which a worker takes one."""


def start_prometheus(program: str, folder: Path, address: str, stack: ExitStack) -> str:
    """Start Prometheus, which gives the service's series the labels of a pod."""
    labels = {"namespace": "sightline", "pod": POD}
    jobs = [{"job_name": "pods", "static_configs": [{"targets": [address], "labels": labels}]}]
    config = {"global": {"scrape_interval": "100ms"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = folder / "prometheus.log"
    flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [program, *flags, "--web.listen-address=127.0.0.1:0"], cwd=folder, stderr=stderr
        )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    found = listening(process, log)
    assert eventually(lambda: is_ready(found)), log.read_text()
    return found


@pytest.mark.slow
def test_replicas_are_added_under_load_and_taken_away_at_rest(
    prometheus: str, tmp_path: Path
) -> None:
    colour_model(tmp_path / "models/colours/1/model.onnx", wait_seconds=0.5)
    flags = ["--model-repository", str(tmp_path / "models"), "--metrics-listen", "127.0.0.1:0"]
    query = scaling.query([POD], window="1s")
    with ExitStack() as stack:
        server = stack.enter_context(started(tmp_path, *flags, "--workers", "1"))
        assert server.metrics_address
        address = start_prometheus(prometheus, tmp_path, server.metrics_address, stack)

        def replicas() -> int:
            found = api(address, "query", query=query)["result"]
            assert [sample["metric"] for sample in found] in ([], [{"pod": POD}])
            return scaling.desired([float(sample["value"][1]) for sample in found] or [0.0])

        stub = stack.enter_context(client(server)).stub
        calls = [stub.Infer.future(ask(picture((9, 9, 9))), timeout=100) for _ in range(WAITING)]
        # At first 39 wait, and two fewer each second; 8 of them for each replica.
        assert eventually(lambda: replicas() >= 3)
        for call in calls:
            call.cancel()  # type: ignore[no-untyped-call]
        assert eventually(lambda: replicas() == scaling.scaler()["minReplicas"])
