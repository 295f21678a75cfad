"""Image files and videos as sources, and the choice of a source by its path."""

from pathlib import Path

import numpy as np
import pytest

from edge.sources import Camera, Frame, PictureFiles, Sampling, VideoFile, open_source
from servicekit.errors import SightlineError
from tests.unit.edge.sources.monitors import RecordingMonitor, save_pictures, save_video


def test_a_folder_gives_its_images_by_name(tmp_path: Path) -> None:
    save_pictures(tmp_path, "b.jpg", "a.png", "c.BMP")
    (tmp_path / "notes.txt").write_text("not a picture")
    frames = list(PictureFiles(tmp_path).frames(RecordingMonitor()))
    assert [frame.image_id for frame in frames] == ["a.png", "b.jpg", "c.BMP"]
    assert [frame.image for frame in frames] == [tmp_path / frame.image_id for frame in frames]


def test_a_pattern_looks_into_folders_and_passes_them_over_themselves(tmp_path: Path) -> None:
    save_pictures(tmp_path / "one", "a.jpg")
    save_pictures(tmp_path / "two.jpg", "b.jpg")
    frames = list(PictureFiles(f"{tmp_path}/**/*.jpg").frames(RecordingMonitor()))
    assert [frame.image_id for frame in frames] == ["one/a.jpg", "two.jpg/b.jpg"]


def test_every_second_image_is_taken_and_the_others_are_told(tmp_path: Path) -> None:
    save_pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    monitor = RecordingMonitor()
    frames = list(PictureFiles(tmp_path, Sampling(every=2)).frames(monitor))
    assert [frame.image_id for frame in frames] == ["a.jpg", "c.jpg"]
    assert monitor.events == ["found", "skipped"]


def test_images_end_when_no_more_are_wanted(tmp_path: Path) -> None:
    save_pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    frames: list[Frame] = []
    for frame in PictureFiles(tmp_path).frames(RecordingMonitor(lambda: len(frames) == 2)):
        frames.append(frame)
    assert len(frames) == 2


@pytest.mark.parametrize("word", ["nothing/*.jpg", "missing.jpg", "a\0b"])
def test_no_image_is_an_error_that_repeats_the_word(word: str) -> None:
    with pytest.raises(SightlineError, match="source must name at least one image") as caught:
        open_source(word)
    assert caught.value.reason == "INVALID_FIELD"


def test_images_have_no_times(tmp_path: Path) -> None:
    save_pictures(tmp_path, "a.jpg")
    with pytest.raises(SightlineError, match="every_seconds must not be given for image files"):
        PictureFiles(tmp_path, Sampling(every_seconds=1))


def test_a_video_gives_its_frames_in_order_and_in_rgb(tmp_path: Path) -> None:
    video = save_video(tmp_path / "line.mp4", frames=20)
    frames = list(VideoFile(video).frames(RecordingMonitor()))
    assert [frame.image_id for frame in frames] == [f"line.mp4#{n:06d}" for n in range(20)]
    first, last = np.asarray(frames[0].image), np.asarray(frames[-1].image)
    assert first.shape == (48, 64, 3)
    assert first.dtype == np.uint8
    assert first[..., 0].mean() > 200 > 50 > first[..., 2].mean()  # red
    assert last[..., 2].mean() > 200 > 50 > last[..., 0].mean()  # blue


@pytest.mark.parametrize(
    ("sampling", "indices"),
    [(Sampling(every=15), [0, 15, 30, 45]), (Sampling(every_seconds=2.0), [0, 20, 40])],
)
def test_seconds_of_a_video_are_its_own(
    tmp_path: Path, sampling: Sampling, indices: list[int]
) -> None:
    video = save_video(tmp_path / "line.mp4", frames=50, fps=10)
    monitor = RecordingMonitor()
    frames = list(VideoFile(video, sampling).frames(monitor))
    assert [frame.image_id for frame in frames] == [f"line.mp4#{n:06d}" for n in indices]
    assert monitor.events.count("skipped") == 50 - len(indices)


def test_a_video_that_nobody_wants_any_more_is_no_failure(tmp_path: Path) -> None:
    video = save_video(tmp_path / "line.mp4", frames=2)
    assert list(VideoFile(video).frames(RecordingMonitor(lambda: True))) == []


def test_a_video_that_is_none_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "line.mp4").write_bytes(b"nonsense")
    with pytest.raises(OSError, match="OpenCV cannot open it"):
        list(VideoFile(tmp_path / "line.mp4").frames(RecordingMonitor()))


def test_a_video_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="source must be a video file"):
        open_source(tmp_path / "line.mp4")


def test_words_name_what_people_mean_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path, "1.jpg")
    save_pictures(tmp_path / "7", "a.jpg")
    save_video(tmp_path / "Line.MP4", frames=2)
    assert isinstance(open_source("0"), Camera)
    assert isinstance(open_source("7"), PictureFiles)  # a folder that is there, not camera 7
    assert isinstance(open_source("/dev/video0"), Camera)
    assert isinstance(open_source("rtsp://camera/stream"), Camera)
    assert isinstance(open_source("http://camera/clip.mp4"), Camera)
    assert isinstance(open_source("Line.MP4"), VideoFile)
    assert isinstance(open_source("*.jpg"), PictureFiles)
    assert isinstance(open_source(tmp_path), PictureFiles)
