"""A node's metrics over HTTP, as Prometheus scrapes them, after real images."""

import sqlite3
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.decide.policy import Mode, Policy
from edge.log.logger import PredictionLogger
from edge.node import EdgeNode
from edge.options import LogOptions
from edge.records import Prediction
from edge.settings import EdgeSettings
from edge.spool.spool import Spool
from servicekit.settings import SettingsError, load
from tests.default_ports import NOBODY
from tests.unit.edge.samples import eventually
from tests.unit.edge.sources.monitors import save_pictures
from tests.unit.edge.test_run import Device, running_node


def scraped(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    samples = [
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    ]
    return {
        (
            sample.name.removeprefix("sightline_edge_"),
            frozenset(sample.labels.items()),
        ): sample.value
        for sample in samples
    }


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def test_what_the_node_did_is_scraped(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg", "c.jpg")

    def fail(image: object) -> None:
        if isinstance(image, Path) and image.name == "a.jpg":
            raise RuntimeError("CUDA error 700")

    with running_node(tmp_path, Device(fail)) as (node, _):
        address = node.serve_metrics("127.0.0.1:0")
        list(node.run(folder))
        assert node.logger.flush(10, until="committed")
        metrics = scraped(address)
        (reason,) = node.stats().pictures.failed
    source = str(folder)
    assert metrics["pictures_total", labels(by="device", reason="")] == 2
    assert metrics["pictures_total", labels(by="nobody", reason=reason)] == 1
    assert metrics["answer_seconds_count", labels(part="device")] == 2
    assert metrics["answer_seconds_count", labels(part="total")] == 2
    assert metrics["answer_seconds_count", labels(part="cloud")] == 0
    assert metrics["log_logged_total", labels()] == 2
    assert metrics["log_sent_total", labels()] == 2
    assert metrics["log_resent_total", labels()] == 0
    assert metrics["log_committed_total", labels()] == 2
    assert metrics["log_backlog", labels()] == 0
    assert metrics["cloud_bytes_total", labels()] == 0
    assert metrics["breaker_state", labels(state="closed")] == 1
    assert metrics["breaker_state", labels(state="open")] == 0
    assert metrics["source_damaged_frames_total", labels(source=source)] == 0
    assert metrics["source_missing_frames_total", labels(source=source)] == 0
    assert metrics["cloud_retries_total", labels()] == 0
    assert metrics["source_frames_total", labels(source=source, to="by_device")] == 2
    assert metrics["source_frames_total", labels(source=source, to="failed")] == 1
    assert metrics["source_state", labels(source=source, state="ended")] == 1
    assert metrics["source_waiting", labels(source=source)] == 0


def probed(address: str, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_node_is_ready_while_its_spool_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    with running_node(tmp_path) as (node, _):
        address = node.serve_metrics("127.0.0.1:0")
        with monkeypatch.context() as broken:
            broken.setattr(Spool, "append", fail)
            node.process(folder / "a.jpg")
            assert eventually(lambda: node.stats().logger.spool_error is not None)
            unready = probed(address, "/readyz")
            assert unready == (503, b"not ready: spool (it cannot be written)\n")
            assert probed(address, "/healthz") == (200, b"live\n")
        assert node.logger.flush(10, until="committed")
        assert probed(address, "/readyz") == (200, b"ready\n")


def test_how_full_the_spool_is(tmp_path: Path) -> None:
    options = LogOptions(spool_bytes=8 << 20, disk_reserve_bytes=0)
    log = PredictionLogger(NOBODY, device_id="g", spool_dir=tmp_path, options=options)
    policy = Policy(mode=Mode.DEVICE)
    with EdgeNode(Device(), None, log, policy) as node:
        address = node.serve_metrics("127.0.0.1:0")
        before = scraped(address)
        for number in range(20):
            log.log(Prediction(f"{number}" * 200, "plates"), wait="spooled")
        after = scraped(address)
    assert after["log_spool_limit_bytes", labels()] == 8 << 20
    assert before["log_spool_bytes", labels()] + 4096 < after["log_spool_bytes", labels()] < 1 << 20


def test_closing_the_node_frees_the_port(tmp_path: Path) -> None:
    with running_node(tmp_path) as (node, _):
        address = node.serve_metrics("127.0.0.1:0")
    with running_node(tmp_path / "again") as (node, _):
        assert node.serve_metrics(address) == address


def test_an_address_that_is_taken_is_an_error_with_the_settings_name(tmp_path: Path) -> None:
    with running_node(tmp_path) as (node, _), running_node(tmp_path / "other") as (other, _):
        address = node.serve_metrics("127.0.0.1:0")
        with pytest.raises(SettingsError, match="metrics_listen: cannot listen on"):
            other.serve_metrics(address)


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_that_is_none_is_told_by_the_settings_name(tmp_path: Path, address: str) -> None:
    with running_node(tmp_path) as (node, _), pytest.raises(SettingsError, match="metrics_listen"):
        node.serve_metrics(address)


def test_metrics_are_served_once(tmp_path: Path) -> None:
    with running_node(tmp_path) as (node, _):
        node.serve_metrics("127.0.0.1:0")
        with pytest.raises(ValueError, match="already served"):
            node.serve_metrics("127.0.0.1:0")


def test_an_address_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_EDGE_METRICS_LISTEN", "nowhere")
    with pytest.raises(SettingsError, match="metrics_listen"):
        load(EdgeSettings, [], prog="edge")
