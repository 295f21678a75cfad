"""`sightline log` over videos and cameras: what it says, what it counts, how it ends."""

import json
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
from tests.integration.cli.terminal import REPOSITORY, SIGHTLINE, environment, sightline
from tests.unit.edge.sources.monitors import save_pictures, save_video

MODEL = REPOSITORY / "plates/1/model.onnx"
PARTS = ("skipped", "dropped", "by_device", "by_cloud", "failed", "waiting")


@pytest.fixture
def ingest() -> Iterator[FakeIngest]:
    with FakeIngest() as made:
        yield made


@pytest.fixture
def network() -> Iterator[NetworkCamera]:
    with camera() as made:
        yield made


def settings(ingest: FakeIngest, folder: Path, **more: object) -> dict[str, str]:
    return environment(
        ingest_target=ingest.target,
        device_id="gate-1",
        device_model=MODEL,
        mode="device",
        spool_dir=folder / "spool",
        **more,
    )


def adds_up(stats: dict[str, Any]) -> bool:
    """Whether every frame that was read has one fate, and every answer is logged."""
    frames = all(
        one["read"] == sum(one[part] for part in PARTS) for one in stats["sources"].values()
    )
    answered = stats["pictures"]["by_device"] + sum(stats["pictures"]["by_cloud"].values())
    return frames and answered == stats["logger"]["logged"]


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
    assert "cameras lost: 1" in line
    assert "rtsp://127.0.0.1:1/x: ended" in out
    assert "OpenCV cannot open it" in out
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
    assert "1 answered by the device" in done.stdout
    assert f"{tmp_path / 'clip.mp4'}: failed" in done.stdout
    assert "Traceback" not in done.stderr


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


def test_two_sources_that_cannot_be_told_apart_are_one_sentence(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    urls = [f"rtsp://127.0.0.1:1/live?token={number}" for number in range(2)]
    done = sightline("log", *urls, env=settings(ingest, tmp_path))
    assert done.returncode != 0
    assert "have different names" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


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


def test_what_is_not_committed_fails_the_run_and_is_sent_by_the_next(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg")
    with FakeIngest() as gone:
        pass
    done = sightline("log", folder, "--json", "--wait", "0.1", env=settings(gone, tmp_path))
    assert done.returncode == 1
    stats = json.loads(done.stdout)
    assert (stats["pictures"]["by_device"], stats["logger"]["backlog"]) == (2, 2)
    other = save_pictures(tmp_path / "more", "c.jpg")
    done = sightline("log", other, "--json", env=settings(ingest, tmp_path))
    assert done.returncode == 0, done.stderr
    assert sorted(ingest.images()) == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_picture_without_an_answer_fails_the_run_and_is_named(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    (folder / "b.jpg").write_bytes(b"no picture")
    done = sightline("log", folder, "--json", env=settings(ingest, tmp_path))
    assert done.returncode == 1
    assert f"{folder / 'b.jpg'}: image must be an image" in done.stderr
    stats = json.loads(done.stdout)
    assert adds_up(stats)
    assert (stats["pictures"]["by_device"], stats["sources"][str(folder)]["failed"]) == (1, 1)
    assert ingest.images() == ["a.jpg"]


def test_a_device_at_fault_gets_no_hint_about_the_service(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    env = settings(ingest, tmp_path, timeout_seconds=0.000001, cloud_reserve_seconds=0)
    done = sightline("log", folder, env=env)
    assert done.returncode == 1
    assert "DEVICE_TIMEOUT" in done.stderr
    assert "--timeout" not in done.stderr


def _spooled(spool: Path) -> bool:
    try:
        return details(spool, 0).summary.pending > 0
    except (OSError, sqlite3.Error, DamagedError):  # it is being made
        return False
