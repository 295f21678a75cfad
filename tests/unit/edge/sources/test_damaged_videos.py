"""Videos with damage, and cameras that send it: what is read, and what is said about the rest."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.sources import Camera, VideoFile
from edge.sources.container import missing_bytes
from edge.sources.counts import SourceCounts
from tests.fakes.cameras import MjpegCamera, camera
from tests.unit.edge.sources.monitors import CODECS, RecordingMonitor, save_noise

FRAMES = 60
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    folder = tmp_path_factory.mktemp("whole")
    made = {suffix: save_noise(folder / f"line.{suffix}", FRAMES).read_bytes() for suffix in CODECS}
    return made.__getitem__


def overwritten(first: float, last: float) -> Damage:
    """Return a damage to a part of a file, from and to shares of its length."""

    def damage(content: bytes) -> bytes:
        begin, end = int(len(content) * first), int(len(content) * last)
        return content[:begin] + random.Random(1).randbytes(end - begin) + content[end:]

    return damage


def cut(share: float) -> Damage:
    return lambda content: content[: int(len(content) * share)]


def read_by_opencv(path: Path) -> tuple[int, int]:
    """Return how many frames OpenCV reads if it goes on, and how many fail before the last."""
    capture = cv2.VideoCapture(str(path))
    grabbed = [capture.grab() for _ in range(FRAMES + 300)]
    capture.release()
    last = max((number for number, ok in enumerate(grabbed) if ok), default=-1)
    return sum(grabbed), last + 1 - sum(grabbed)


def read(path: Path) -> tuple[list[str], RecordingMonitor, str]:
    """Return the ids of the frames of a video, what was told of it, and its error."""
    monitor, ids = RecordingMonitor(), []
    try:
        for frame in VideoFile(path).frames(monitor):
            ids.append(frame.image_id)
    except OSError as error:
        return ids, monitor, str(error)
    return ids, monitor, ""


def told(monitor: RecordingMonitor, kind: str) -> int:
    events = [event.partition(": ") for event in monitor.events]
    return sum(int(count) for name, _, count in events if name == kind)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "avi", "mkv"])
@pytest.mark.parametrize(
    "damage",
    [overwritten(0.4, 0.5), overwritten(0.3, 0.7), overwritten(0.03, 0.1), overwritten(0.8, 0.9)],
    ids=["middle", "large", "first", "last"],
)
def test_what_follows_damage_is_read(
    tmp_path: Path, whole: Callable[[str], bytes], suffix: str, damage: Damage
) -> None:
    video = tmp_path / f"line.{suffix}"
    video.write_bytes(damage(whole(suffix)))
    readable, failed = read_by_opencv(video)
    ids, monitor, error = read(video)
    assert len(ids) == readable
    assert told(monitor, "damaged") == failed
    assert error == ""
    numbers = [int(name.rpartition("#")[2]) for name in ids]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == readable + failed - 1  # damaged frames keep their numbers
    if suffix in ("mp4", "mov"):
        assert failed >= 1
        assert readable + failed == FRAMES
    else:  # the container's reader passes over what is damaged
        assert told(monitor, "missing") + readable + failed == FRAMES


@pytest.mark.parametrize("order", ["intact", "damaged"])
def test_h264_with_frames_out_of_order(tmp_path: Path, order: str) -> None:
    """The frames of a camera: the decoder holds some back, and gives them after a failure."""
    av: Any = pytest.importorskip("av")
    video, noise = tmp_path / "line.mp4", np.random.default_rng(0)
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for _ in range(FRAMES):
            pixels = noise.integers(0, 256, (120, 160, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    if order == "damaged":
        video.write_bytes(overwritten(0.4, 0.5)(video.read_bytes()))
    readable, failed = read_by_opencv(video)
    ids, monitor, error = read(video)
    assert (len(ids), told(monitor, "damaged"), error) == (readable, failed, "")
    assert (failed > 0) == (order == "damaged")
    assert readable + failed == FRAMES


@pytest.mark.parametrize("suffix", CODECS)
def test_nothing_is_said_of_a_whole_video(
    tmp_path: Path, whole: Callable[[str], bytes], suffix: str
) -> None:
    video = tmp_path / f"line.{suffix}"
    video.write_bytes(whole(suffix))
    ids, monitor, error = read(video)
    assert (len(ids), monitor.events, error) == (FRAMES, ["found"], "")
    assert missing_bytes(video) == 0


def test_an_empty_video_is_named_as_one(tmp_path: Path) -> None:
    video = tmp_path / "line.mp4"
    video.touch()
    ids, _, error = read(video)
    assert (ids, error) == ([], "the file is empty")


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_that_was_cut_off_is_no_video_that_ended(
    tmp_path: Path, whole: Callable[[str], bytes], suffix: str
) -> None:
    video = tmp_path / f"line.{suffix}"
    content = whole(suffix)
    video.write_bytes(content[: len(content) * 6 // 10])
    ids, _, error = read(video)
    missing = missing_bytes(video)
    assert error == f"the file is cut off: its last {missing:,} bytes are missing"
    if suffix in ("avi", "mkv"):  # others have their list of frames at the end
        assert 20 <= len(ids) < FRAMES
        assert missing == len(content) - len(content) * 6 // 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"nonsense and more of it",
        b"RIFF",
        b"\0\0\0\x18ftypisom",
        b"RIFF\x10\0\0\0AVI 1234",
        b"\x1a\x45\xdf\xa3\xff",
    ],
)
def test_a_file_that_is_no_video_misses_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "line.mp4").write_bytes(content)
    assert missing_bytes(tmp_path / "line.mp4") == (12 if b"ftyp" in content else 0)


def test_a_dead_video_ends(tmp_path: Path, whole: Callable[[str], bytes]) -> None:
    """Damage in every frame: the list of frames alone is whole."""
    content = whole("mp4")
    begin, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    video = tmp_path / "line.mp4"
    video.write_bytes(content[:begin] + bytes(end - begin) + content[end:])
    ids, _, error = read(video)
    assert ids == []
    assert error == f"{video} has no frame that OpenCV can read"


def test_the_error_of_an_incomplete_source_is_its_counts() -> None:
    counts = SourceCounts()
    counts.damage(1)
    assert counts.stats().last_error == "1 frame cannot be decoded"
    counts.damage(1499)
    counts.miss(3)
    assert counts.stats().last_error == (
        "1,500 frames cannot be decoded, 3 frames that the file lists cannot be found"
    )
    assert (counts.stats().read, counts.stats().damaged, counts.stats().missing) == (0, 1500, 3)


class GarblingCamera(MjpegCamera):
    """A camera that sends noise in place of some of its images."""

    garbled = frozenset(range(5, 30))

    def pictures(self) -> Iterator[bytes]:
        noise = random.Random(2)
        for number, picture in enumerate(super().pictures()):
            yield noise.randbytes(len(picture)) if number in self.garbled else picture


def test_a_camera_that_sends_noise_for_a_time_stays_connected() -> None:
    monitor = RecordingMonitor()
    with camera(GarblingCamera, frames_per_second=200.0) as network:
        stream = Camera(network.url, "gate").frames(monitor)
        frames = list(itertools.islice(stream, 10))
        assert network.connections == 1
    assert len(frames) == 10
    assert told(monitor, "damaged") == len(GarblingCamera.garbled)
    assert not [event for event in monitor.events if event.startswith("lost")]


def test_a_camera_that_sends_nothing_but_noise_is_connected_anew() -> None:
    class Broken(GarblingCamera):
        garbled = frozenset(range(5, 100_000))

    monitor = RecordingMonitor()
    with camera(Broken, frames_per_second=500.0) as network:
        for _ in Camera(network.url, "gate", backoff=lambda _: 0.01).frames(monitor):
            if network.connections == 2:
                break
    assert [event.partition(":")[0] for event in monitor.events] == ["found", "lost", "found"]
