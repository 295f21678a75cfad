"""`sightline log` over videos and cameras: what it says, what it counts, how it ends."""

import json
import re
import signal
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.spool.identity import DamagedError
from edge.spool.inspect import details
from tests.fakes.cameras import NetworkCamera, camera
from tests.fakes.ingest import FakeIngest
from tests.integration.cli.log_runs import MODEL, adds_up, settings
from tests.integration.cli.log_runs import ingest as ingest
from tests.integration.cli.terminal import (
    SIGHTLINE,
    environment,
    in_terminal,
    read_until,
    sightline,
)
from tests.unit.edge.sources.monitors import save_noise, save_pictures, save_video

# Text with characters that `str.isprintable` refuses: a zero-width non-joiner, a no-break space.
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
NO_BREAK = "Halle\u00a07"


@pytest.fixture
def network() -> Iterator[NetworkCamera]:
    with camera() as made:
        yield made


def test_several_sources_at_once(ingest: FakeIngest, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg")
    video = save_video(tmp_path / "clip.mp4", frames=20)
    done = sightline("log", folder, video, "--json", env=settings(ingest, tmp_path))
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)
    assert adds_up(stats)
    assert {name: one["by_device"] for name, one in stats["sources"].items()} == {
        str(folder): 2,
        str(video): 20,
    }
    names = set(ingest.images())
    assert names == {"a.jpg", "b.jpg", *(f"clip.mp4#{n:06d}" for n in range(20))}


@pytest.mark.parametrize(
    ("flags", "taken"), [(["--every", "5"], 4), (["--every-seconds", "0.5"], 4), ([], 20)]
)
def test_some_frames_of_a_video(
    ingest: FakeIngest, tmp_path: Path, flags: list[str], taken: int
) -> None:
    video = save_video(tmp_path / "clip.mp4", frames=20, fps=10)
    done = sightline("log", video, *flags, "--json", env=settings(ingest, tmp_path))
    assert done.returncode == 0, done.stderr
    (source,) = json.loads(done.stdout)["sources"].values()
    assert (source["read"], source["by_device"], source["skipped"]) == (20, taken, 20 - taken)


def test_a_camera_that_is_lost_is_found_again_and_ctrl_c_sums_up(
    ingest: FakeIngest, network: NetworkCamera, tmp_path: Path
) -> None:
    env = settings(ingest, tmp_path, metrics_listen="127.0.0.1:0")
    with subprocess.Popen(
        [*SIGHTLINE, "log", network.url, "--json"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _until(lambda: len(ingest.images()) >= 3)
        network.cut()
        before = network.connections
        network.restore()
        _until(lambda: network.connections > before)
        seen = len(ingest.images())
        _until(lambda: len(ingest.images()) > seen + 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    stats = json.loads(out)
    assert adds_up(stats)
    (source,) = stats["sources"].values()
    assert source["reconnects"] >= 1
    assert source["state"] == "ended"


def test_an_unreachable_camera_is_told_in_one_line_and_nothing_else_is(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [*SIGHTLINE, "log", "rtsp://user:secret@127.0.0.1:1/x"],
        env=settings(ingest, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "source rtsp://127.0.0.1:1/x is not reachable, trying again: " in line
    assert "OpenCV cannot open it" in line
    assert "rtsp://127.0.0.1:1/x: not reachable: OpenCV cannot open it" in out
    assert "Next: sightline doctor" in out
    for text in (line, out, err):
        assert "secret" not in text
        assert "VIDEOIO" not in text
        assert "tcp @" not in text


def test_a_video_that_cannot_be_read_fails_the_run_but_not_its_neighbour(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    (tmp_path / "clip.mp4").write_bytes(b"nonsense")
    done = sightline("log", folder, tmp_path / "clip.mp4", env=settings(ingest, tmp_path))
    assert done.returncode == 1
    assert "1 image: 1 answered by the device, 0 by the cloud, 0 failed" in done.stdout
    assert "1 prediction logged, all committed" in done.stdout
    assert f"{tmp_path / 'clip.mp4'}: failed" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("as_json", [True, False])
def test_a_damaged_video_is_read_on_and_fails_the_run(
    ingest: FakeIngest, tmp_path: Path, as_json: bool
) -> None:
    video = save_noise(tmp_path / "clip.mp4", 20)
    content = bytearray(video.read_bytes())
    begin, end = len(content) * 4 // 10, len(content) * 6 // 10
    content[begin:end] = bytes(end - begin)
    video.write_bytes(content)
    flags = ["--json"] if as_json else []
    done = sightline("log", video, *flags, env=settings(ingest, tmp_path))
    assert done.returncode == 1, done.stderr
    damaged = 20 - len(ingest.images())
    assert 1 <= damaged <= 6
    assert "clip.mp4#000019" in ingest.images()
    assert "has a damaged frame, reading on" in done.stderr
    if as_json:
        stats = json.loads(done.stdout)
        assert adds_up(stats)
        (source,) = stats["sources"].values()
        assert (source["state"], source["read"]) == ("ended", 20 - damaged)
        assert source["damaged"] == damaged
    else:
        assert f"{video}: ended: {damaged} frames cannot be decoded" in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--every-seconds", "1"], "every_seconds must not be given for image files"),
        (["--every-seconds", "0"], "every_seconds must be above 0"),
        (["--every-seconds", "1", "--every", "2"], "must not be given together"),
    ],
)
def test_mistakes_are_one_sentence(
    ingest: FakeIngest, tmp_path: Path, flags: list[str], said: str
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    done = sightline("log", folder, *flags, env=settings(ingest, tmp_path))
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert ingest.images() == []


@pytest.mark.parametrize(("module", "extra"), [("cv2", "video"), ("prometheus_client", "metrics")])
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    ingest: FakeIngest, tmp_path: Path, module: str, extra: str
) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    env = settings(ingest, tmp_path, metrics_listen="127.0.0.1:0")
    env["PYTHONPATH"] = f"{blocked}:{env.get('PYTHONPATH', '')}"
    video = save_video(tmp_path / "clip.mp4", frames=2)
    done = sightline("log", video, env=env)
    assert done.returncode != 0
    assert f"pip install 'sightline-vision[{extra}]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_prometheus_may_look_while_it_runs(
    ingest: FakeIngest, network: NetworkCamera, tmp_path: Path
) -> None:
    with FakeIngest() as port:  # a port that was free a moment ago
        address = port.target
    with subprocess.Popen(
        [*SIGHTLINE, "log", network.url],
        env=settings(ingest, tmp_path, metrics_listen=address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _until(lambda: len(ingest.images()) >= 1)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
            page = response.read().decode()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert 'sightline_edge_pictures_total{by="device",reason=""}' in page
    assert process.returncode == 0


def _until(happened: Any) -> None:
    ends_at = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def test_the_same_source_twice_is_two_sources(ingest: FakeIngest, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    done = sightline("log", folder, folder, "--json", env=settings(ingest, tmp_path))
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)
    assert adds_up(stats)
    assert {name: one["by_device"] for name, one in stats["sources"].items()} == {
        str(folder): 1,
        f"{folder} (2)": 1,
    }
    assert ingest.images() == ["a.jpg", "a.jpg"]


def test_labels_and_any_setting_are_flags(ingest: FakeIngest, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    env = environment()
    flags = ["--label", "line=4", "--label", "shift=early=1", "--device-id", "gate-1"]
    flags += ["--label", f"site={PERSIAN}", "--label", f"hall={NO_BREAK}"]
    flags += ["--ingest-target", ingest.target, "--device-model", str(MODEL), "--mode", "device"]
    flags += ["--spool-dir", str(tmp_path / "spool"), "--no-cascade-any", "--batch-size", "7"]
    done = sightline("log", folder, *flags, env=env)
    assert done.returncode == 0, done.stderr
    (prediction,) = ingest.only().predictions.values()
    assert dict(prediction.labels) == {
        "line": "4",
        "shift": "early=1",
        "source": str(folder),
        "site": PERSIAN,
        "hall": NO_BREAK,
    }
    assert (tmp_path / "spool" / "spool.db").is_file()
    assert "Next: sightline stats --device gate-1" in done.stdout
    done = sightline("log", folder, *flags, "--batch-size", "0", env=env)
    assert done.returncode == 2
    assert "batch_size: must be greater than or equal to 1" in done.stderr


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("line", "--label: must be NAME=VALUE, such as line=4 (got 'line')"),
        ("source=x", "--label: source is the name of each image's source already"),
        ("line=" + "x" * 1025, "must be UTF-8 text of at most 1024 bytes each"),
        (b"line=\xff".decode("utf-8", "surrogateescape"), "must be UTF-8 text"),
    ],
)
def test_labels_that_cannot_be_logged(
    ingest: FakeIngest, tmp_path: Path, label: str, sentence: str
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    done = sightline("log", folder, "--label", label, env=settings(ingest, tmp_path))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert ingest.images() == []


def test_each_source_may_be_a_device_of_its_own(ingest: FakeIngest, tmp_path: Path) -> None:
    north = save_pictures(tmp_path / "north", "a.jpg", "b.jpg")
    south = save_pictures(tmp_path / "south", "c.jpg")
    flags = ["--device-id", "gate-{source}", "--json"]
    done = sightline("log", north, south, *flags, env=settings(ingest, tmp_path))
    assert done.returncode == 0, done.stderr
    devices = json.loads(done.stdout)["devices"]
    assert {name: one["pictures"]["by_device"] for name, one in devices.items()} == {
        "gate-north": 2,
        "gate-south": 1,
    }
    assert all(adds_up(one) for one in devices.values())
    assert sorted(ingest.images()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert {path.parent.name for path in (tmp_path / "spool").glob("*/spool.db")} == set(devices)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_device_of_a_run(
    ingest: FakeIngest, network: NetworkCamera, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ["--device-id", "gate-{source}"]
    with subprocess.Popen(
        [*SIGHTLINE, "log", network.url, "rtsp://127.0.0.1:1/x", *flags],
        env=settings(ingest, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _until(lambda: len(ingest.images()) >= 3)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "all committed" in out
    assert "Next: sightline doctor" in out


def test_progress_of_a_folder_is_shown_on_a_terminal(ingest: FakeIngest, tmp_path: Path) -> None:
    names = [f"{number:04}.jpg" for number in range(1500)]  # more than one redraw of the line
    folder = save_pictures(tmp_path / "pictures", *names)
    words = [*SIGHTLINE, "log", str(folder), "--device-id", "gate-1"]
    env = settings(ingest, tmp_path)
    with in_terminal(*words, env=env) as (process, terminal):
        text = read_until(terminal, "Next: ")
        assert process.wait(60) == 0
    assert re.search(r"\d+%(, \d+:\d\d left)?; [\d,]+ images, ", text)
    assert "1,500 images: 1,500 answered by the device, 0 by the cloud, 0 failed" in text
    assert "1,500 predictions logged, all committed" in text


def test_sigterm_while_the_log_is_waited_for_sums_up_too(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    with FakeIngest() as gone:
        pass
    with subprocess.Popen(
        [*SIGHTLINE, "log", str(folder), "--json", "--wait", "60"],
        env=settings(gone, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _until(lambda: _spooled(tmp_path / "spool/spool.db"))
        time.sleep(0.5)  # by now it waits; before that a signal would end the run, to the same end
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 1), err
    stats = json.loads(out)
    assert stats["pictures"]["by_device"] == 1
    assert stats["logger"]["backlog"] == 1


def _spooled(spool: Path) -> bool:
    try:
        return details(spool, 0).summary.pending > 0
    except (OSError, sqlite3.Error, DamagedError):  # it is being made
        return False
