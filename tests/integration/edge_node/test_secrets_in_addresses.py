"""Addresses with a user, a password or a token, through every door that shows or stores a name."""

import json
import logging
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge.channel import Endpoint
from edge.commands.doctor import findings
from edge.commands.sources import device_ids, open_sources
from edge.settings import EdgeSettings
from edge.sources import Camera, Frame, SourceMonitor, open_source
from ingest_service.settings import IngestSettings
from servicekit.addresses import public_address, url_scheme, without_secrets
from servicekit.auth.jwks import JwksUrl
from servicekit.errors import SightlineError
from servicekit.settings import SettingsError, load
from servicekit.terminal import CommandError
from sightline.cli.app import app
from tests.fakes.cameras import RtspCamera, camera
from tests.unit.edge.test_run import running_node

SECRET = re.compile("hunter|opera|t0ken")
"""Parts of every password, user and token below."""
# Nothing listens on port 1.
URLS = [
    "rtsp://operator:hunter2@127.0.0.1:1/live",
    "rtsp://operator:hun/ter2@127.0.0.1:1/live?channel=2",
    "rtsp://operator:hunt@er2@127.0.0.1:1/live",
    "rtsp://operator:hunter 2@127.0.0.1:1/live",
    "rtsp://t0ken@127.0.0.1:1/live",
    "rtsp://127.0.0.1:1/live?token=t0ken&subtype=1",
    "http://127.0.0.1:1/mjpg?user=operator&password=hunter2",
    "http://127.0.0.1:1/mjpg#t0ken",
    "rtsp://127.0.0.1:1/user=operator_password=hunter2_channel=1.sdp",
    "rtsp://127.0.0.1:1/usr=operator&psw=hunter2&channel=1",
    "http://127.0.0.1:1/snap?id=5;password=hunter2?pwd=hunter2",
    "rtsp://127.0.0.1:1/live?stream=a_pw=hunter2",
]
TYPING_MISTAKES = [
    "operator:hunter2@127.0.0.1:1/live",
    "rtsp:/operator:hunter2@127.0.0.1:1/live",
    "rtsp:operator:hunter2@127.0.0.1:1/live",
]
KINDS = pytest.mark.parametrize("url", URLS)


def is_public(*texts: object) -> bool:
    """Return True if no text holds a user, a password or a token of the table."""
    return not any(SECRET.search(str(text)) for text in texts)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return everything that was logged and printed, by OpenCV and FFmpeg as well."""
    caplog.set_level(logging.DEBUG)

    def everything() -> str:
        out, err = capfd.readouterr()
        return out + err + "".join(record.getMessage() for record in caplog.records)

    return everything


class Loud:
    """A source of a program: its name is the address, and so is its error."""

    live = False

    def __init__(self, url: str) -> None:
        self.name = url

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        monitor.lost(f"{self.name} is lost")
        monitor.found()
        yield Frame(b"x", "first")
        raise OSError(f"cannot read {self.name}: gone")


@KINDS
def test_what_is_shown_of_an_address(url: str) -> None:
    shown = public_address(url)
    assert is_public(shown)
    assert shown.startswith(url.partition(":")[0] + "://127.0.0.1:1/")
    assert public_address(shown) == shown
    assert is_public(without_secrets(f"cannot open '{url}': refused", url))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:1", "unix:/run/a@b.sock", "dns:///ingest.example:1", "[::1]:1", "gate:1"),
        *("weld___01.jpg", "parts/a b.jpg", "icon@2x.png", "0", "/dev/video0", "C:/a@2x.jpg"),
    ],
)
def test_an_address_without_a_secret_is_shown_as_it_is(address: str) -> None:
    assert public_address(address) == address
    assert without_secrets(f"{address} is gone", address) == f"{address} is gone"
    assert url_scheme(address) == ("dns" if "dns" in address else "")


@KINDS
def test_a_camera_that_cannot_be_reached(url: str, tmp_path: Path, said: Callable[[], str]) -> None:
    with running_node(tmp_path) as (node, _):
        address = node.serve_metrics("127.0.0.1:0")
        run = threading.Thread(target=lambda: list(node.run(url)), daemon=True)
        run.start()
        while not (sources := node.stats().sources) or not next(iter(sources.values())).last_error:
            run.join(0.01)
        threads = [thread.name for thread in threading.enumerate()]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
            metrics = page.read().decode()
        stats = json.dumps(asdict(node.stats()))
    assert "127.0.0.1:1/" in metrics
    assert is_public(threads, metrics, stats, said())


def test_frames_of_a_real_stream(tmp_path: Path, said: Callable[[], str]) -> None:
    with camera(RtspCamera) as network, running_node(tmp_path) as (node, ingest):
        url = network.url.replace("//", "//operator:hunter2@") + "?token=t0ken"
        for outcome in node.run(url):
            assert is_public(outcome.source, outcome.frame.image_id)
            assert outcome.frame.image_id.startswith("rtsp://127.0.0.1:")
            break
        assert node.logger.flush(10, until="committed")
        (prediction,) = list(ingest.only().predictions.values())[:1]
    assert is_public(prediction, said())


@KINDS
def test_a_source_of_a_program(url: str, tmp_path: Path, said: Callable[[], str]) -> None:
    with running_node(tmp_path) as (node, ingest):
        outcomes = list(node.run(Loud(url)))
        assert node.logger.flush(10, until="committed")
        stats = json.dumps(asdict(node.stats()))
        predictions = str(ingest.only().predictions)
    assert is_public(outcomes, predictions, stats, said())
    assert "gone" in stats


@KINDS
def test_names_of_devices(url: str) -> None:
    assert is_public(device_ids("gate-{source}", [Camera(url)]))
    assert is_public([source.name for source in open_sources([url, url], 1, None)])


@pytest.mark.parametrize("word", TYPING_MISTAKES)
def test_a_mistyped_source(word: str) -> None:
    with pytest.raises(CommandError, match=r"127\.0\.0\.1:1/live") as caught:
        open_sources([word], 1, None)
    assert is_public(caught.value)
    for refused in (f"{word}.mp4", word):
        with pytest.raises(SightlineError, match="source must ") as error:
            open_source(refused)
        assert is_public(error.value)


@pytest.mark.parametrize("url", [*URLS, *TYPING_MISTAKES])
@pytest.mark.parametrize(
    ("cls", "setting"),
    [
        (EdgeSettings, "ingest_target"),
        (EdgeSettings, "device_providers"),
        (EdgeSettings, "timeout_seconds"),
        (IngestSettings, "listen"),
        (IngestSettings, "metrics_listen"),
        (IngestSettings, "otlp_endpoint"),
        (IngestSettings, "max_message_bytes"),
    ],
)
def test_a_setting_that_is_refused(cls: Any, setting: str, url: str) -> None:
    try:
        load(cls, [f"--{setting.replace('_', '-')}", url], prog="sightline")
    except SettingsError as error:  # some of the addresses are allowed in some of the settings
        shown = str(error)
        assert setting in shown
        assert is_public(shown)


@pytest.mark.parametrize("flag", ["", "--listen"])
def test_a_word_that_is_no_flag(flag: str) -> None:
    words = [flag, "127.0.0.1:0", URLS[0]] if flag else [URLS[0]]
    with pytest.raises(SettingsError, match="unexpected argument") as caught:
        load(IngestSettings, words, prog="sightline")
    assert is_public(caught.value)


@pytest.mark.parametrize("user", ["operator:hunter2", "t0ken"])
def test_an_address_of_keys_has_no_password(user: str) -> None:
    flags = ["--jwt-jwks", f"http://{user}@127.0.0.1:1/keys", "--jwt-audience", "a"]
    with pytest.raises(SettingsError, match="must have no user and no password") as caught:
        load(IngestSettings, flags, prog="sightline")
    assert is_public(caught.value)


async def test_keys_that_cannot_be_fetched(said: Callable[[], str]) -> None:
    with pytest.raises(SightlineError, match="cannot be fetched") as caught:
        await JwksUrl("http://127.0.0.1:1/keys?token=t0ken").find("a", "ES256")
    text = said()
    assert "JWKS: http://127.0.0.1:1/keys: " in text
    assert is_public(text, caught.value)


@KINDS
def test_errors_of_a_connection(url: str) -> None:
    with pytest.raises(ValueError, match="must not be sent in plain text") as caught:
        Endpoint(url.replace("127.0.0.1", "192.0.2.1"), api_key="k")
    assert is_public(caught.value)


@KINDS
def test_the_doctor_and_the_command_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_EDGE_INGEST_TARGET", url)
    assert is_public([asdict(finding) for finding in findings(1.0)])
    for command in ("doctor", "health", "stats"):
        done = CliRunner().invoke(app, [command, "--json"])
        assert done.exit_code
        assert is_public(done.output, done.exception)


@KINDS
def test_a_model_that_is_an_address(url: str, tmp_path: Path) -> None:
    found = [
        asdict(finding)
        for finding in findings(
            0.1, device_model=url, spool_dir=tmp_path, ingest_target="127.0.0.1:1", mode="device"
        )
    ]
    assert is_public(found)


def test_a_value_of_the_command_line_that_is_refused() -> None:
    for words in (["log", "--every", URLS[0], "x.jpg"], ["health", "--timeout", URLS[0]]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2
        assert is_public(done.output)
