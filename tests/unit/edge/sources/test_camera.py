"""Cameras over a real network connection: lost, frozen, reconnected."""

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from edge.sources import Camera, Frame, Sampling
from tests.fakes.cameras import MjpegCamera, NetworkCamera, RtspCamera, camera
from tests.unit.edge.sources.monitors import RecordingMonitor


def restored(network: NetworkCamera, due: bool) -> bool:
    """Restore the camera when it is due; return False, so that the reading goes on."""
    if due:
        network.restore()
    return False


@pytest.fixture(params=[MjpegCamera, RtspCamera])
def network(request: pytest.FixtureRequest) -> Iterator[NetworkCamera]:
    with camera(request.param) as network:
        yield network


def test_a_camera_gives_frames_with_their_times_until_no_more_are_wanted(
    network: NetworkCamera,
) -> None:
    frames: list[Frame] = []
    began = time.time()
    monitor = RecordingMonitor(lambda: len(frames) == 5)
    for frame in Camera(network.url, "gate").frames(monitor):
        frames.append(frame)
    assert len(frames) == 5
    assert monitor.events == ["found"]
    assert len({frame.image_id for frame in frames}) == 5
    assert frames[0].image_id.startswith("gate@20")
    times = [frame.captured_at or 0.0 for frame in frames]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= time.time()
    pixels = np.asarray(frames[0].image)
    assert pixels.shape == (48, 64, 3)
    assert pixels[..., 2].mean() > 200 > 50 > pixels[..., 0].mean()  # blue at first


def test_a_camera_that_was_cut_off_is_found_again(network: NetworkCamera) -> None:
    monitor = RecordingMonitor()
    stream = Camera(network.url, backoff=lambda n: 0.01).frames(monitor)
    next(stream)
    network.cut()
    monitor.enough = lambda: restored(network, len(monitor.waits) >= 3)
    for _ in stream:
        if network.connections == 2:
            break
    assert monitor.events[0] == "found"
    assert monitor.events[-1] == "found"
    assert len(monitor.events) >= 4
    assert all(events.startswith("lost: ") for events in monitor.events[1:-1])


def test_waits_grow_until_a_frame_comes(network: NetworkCamera) -> None:
    failure_counts: list[int] = []
    monitor = RecordingMonitor()

    def backoff(failures: int) -> float:
        failure_counts.append(failures)
        return 0.01

    stream = Camera(network.url, backoff=backoff).frames(monitor)
    for _ in range(2):
        next(stream)
        network.cut()
        monitor.waits.clear()
        monitor.enough = lambda: restored(network, len(monitor.waits) >= 3)
        before = network.connections
        while network.connections == before:
            next(stream)
    assert failure_counts[:3] == [1, 2, 3]
    assert 1 in failure_counts[3:]


def test_a_camera_that_freezes_is_connected_anew(network: NetworkCamera) -> None:
    monitor = RecordingMonitor()
    stream = Camera(network.url, timeout=0.5, backoff=lambda n: 0.01).frames(monitor)
    next(stream)
    network.freeze()
    began = time.monotonic()
    monitor.enough = lambda: restored(network, bool(monitor.waits))
    while network.connections == 1:
        next(stream)
    assert time.monotonic() - began < 10
    assert [events.partition(":")[0] for events in monitor.events] == ["found", "lost", "found"]


def test_a_camera_that_was_never_there_is_looked_for_until_no_more_is_wanted() -> None:
    monitor = RecordingMonitor()
    monitor.enough = lambda: len(monitor.waits) == 3
    stream = Camera("rtsp://user:secret@127.0.0.1:1/x?token=t", backoff=lambda n: 0.01)
    assert list(stream.frames(monitor)) == []
    assert monitor.events == ["lost: OpenCV cannot open it"] * 3


def test_a_frame_every_so_many_seconds(network: NetworkCamera) -> None:
    monitor = RecordingMonitor()
    began = time.monotonic()
    sampled = Camera(network.url, sampling=Sampling(every_seconds=0.2)).frames(monitor)
    assert len(list(islice(sampled, 4))) == 4
    assert time.monotonic() - began >= 0.55
    assert "skipped" in monitor.events


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("rtsp://user:secret@cam-1:554/stream?token=t#x", "rtsp://cam-1:554/stream"),
        ("rtsp://cam-1/stream", "rtsp://cam-1/stream"),
        ("http://user:secret@cam-1:nonsense/stream", "http://cam-1:nonsense/stream"),
        ("rtsp://admin:pa/ss@cam-1/stream", "rtsp://cam-1/stream"),
        ("rtsp://admin:p[s@s@cam-1/stream", "rtsp://cam-1/stream"),
        ("rtsp://[::1]:554/x", "rtsp://[::1]:554/x"),
        (
            "rtsp://cam-1/user=admin_password=tlJwpbo6_channel=1_stream=0.sdp",
            "rtsp://cam-1/user=***_password=***_channel=1_stream=0.sdp",
        ),
        ("rtsp://cam-1/live?channel=2&token=t&subtype=0", "rtsp://cam-1/live?channel=2&subtype=0"),
        ("0", "camera-0"),
        ("/dev/video0", "/dev/video0"),
        (0, "camera-0"),
    ],
)
def test_a_name_has_no_secrets_in_it(place: str | int, name: str) -> None:
    assert Camera(place).name == name


def test_a_timeout_has_bounds() -> None:
    with pytest.raises(ValueError, match="timeout must be above 0 and at most 3600 s, got 0"):
        Camera("rtsp://cam-1/stream", timeout=0)
