"""A node's metrics over HTTP, as Prometheus scrapes them, after real images."""

import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.settings import EdgeSettings
from servicekit.settings import SettingsError, load
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
