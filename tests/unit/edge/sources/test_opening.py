"""The choice of a source for a file: by its suffix, and by its content where the suffix is new."""

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from edge.sources import Frame, PictureFiles, VideoFile, open_source
from edge.sources.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from servicekit.errors import SightlineError
from tests.unit.edge.sources.monitors import RecordingMonitor, save_pictures
from tests.unit.vision.pictures import encode, pattern


def record(path: Path, codec: str, container: str, frames: int = 6) -> Path:
    """Save a video of 64 x 48 pixels."""
    with av.open(str(path), "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=10)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(frames):
            array = np.full((48, 64, 3), index * 40, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.flv", "flv", "flv"),
        ("a.mjpeg", "mjpeg", "mjpeg"),
        ("a.MJPG", "mjpeg", "mjpeg"),
        ("a.h264", "libx264", "h264"),
        ("a.264", "libx264", "h264"),
        ("a.dav", "libx264", "h264"),
        ("a.3gp", "mpeg4", "3gp"),
        ("a.asf", "wmv2", "asf"),
        ("a.vob", "mpeg2video", "vob"),
        ("a.m2ts", "mpeg2video", "mpegts"),
        ("a.rm", "rv10", "rm"),
        ("a.divx", "mpeg4", "avi"),
        ("a.y4m", "rawvideo", "yuv4mpegpipe"),
        ("a.ivf", "libvpx", "ivf"),
        # By their content:
        ("recording", "mpeg4", "mp4"),
        ("a.rec", "mpeg2video", "mpegts"),
        ("a.mp4.part", "mpeg4", "matroska"),
        ("a.unknown", "flv", "swf"),  # OpenCV tries it
    ],
)
def test_a_video_is_one_whatever_it_is_called(
    name: str, codec: str, container: str, tmp_path: Path
) -> None:
    path = record(tmp_path / name, codec, container)
    source = open_source(path)
    assert isinstance(source, VideoFile)
    frames = list(source.frames(RecordingMonitor()))
    assert len(frames) >= 5
    assert frames[0].image_id == f"{name}#000000"


@pytest.mark.parametrize(
    "content",
    [
        *(encode(pattern(), kind) for kind in ("JPEG", "PNG", "GIF", "AVIF", "TIFF")),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"some text\n" * 100,
        b"\x08\x07\x12\x04\0" * 300,
        b"",
    ],
)
@pytest.mark.parametrize("name", ["picture", "notes.txt", "a.jpg", "a.001"])
def test_what_is_no_video_is_read_as_an_image(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    source = open_source(path)
    assert isinstance(source, PictureFiles)
    (frame,) = source.frames(RecordingMonitor())
    assert (frame.image, frame.image_id) == (path, name)


def test_a_folder_with_the_suffix_of_a_video_is_a_folder(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "shift.ts", "a.jpg")
    assert isinstance(open_source(folder), PictureFiles)


def test_no_suffix_is_of_both() -> None:
    assert not IMAGE_SUFFIXES & VIDEO_SUFFIXES
    assert all(suffix == suffix.lower() for suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES)


def test_a_folder_gives_every_image_and_counts_the_others(tmp_path: Path) -> None:
    kinds = {".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "MPO", ".tif": "TIFF", ".TIFF": "TIFF"}
    kinds |= {".gif": "GIF", ".jp2": "JPEG2000", ".avif": "AVIF", ".dib": "BMP", ".pgm": "PPM"}
    for suffix, kind in kinds.items():
        (tmp_path / f"a{suffix}").write_bytes(encode(pattern(), kind))
    for name in ("b.heic", "c.HEIC", "notes.txt", "README", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # whoever opens it waits for a writer
    (tmp_path / "lost.jpg").symlink_to("nowhere.jpg")
    source = PictureFiles(tmp_path)
    names = [frame.image_id for frame in source.frames(RecordingMonitor())]
    assert names == sorted([*(f"a{suffix}" for suffix in kinds), "lost.jpg"])
    assert source.left_out == {".heic": 2, ".txt": 1, "": 1}


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(SightlineError) as caught:
        open_source(tmp_path)
    assert "which has 1 file without the suffix of an image (.heic)" in caught.value.message


def test_a_pattern_is_of_images(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="a pattern stands for images, so name each video"):
        open_source(tmp_path / "*.mp4")


def bad(name: bytes) -> str:
    return os.fsdecode(name)


def test_names_that_are_no_text_get_ids_that_are(tmp_path: Path) -> None:
    folder = tmp_path / bad(b"shift-\xe4")
    for name in (b"a-\xff.jpg", "ä.jpg".encode(), b"plain.jpg"):
        (folder / bad(name)).parent.mkdir(exist_ok=True)
        (folder / bad(name)).write_bytes(encode(pattern(), "JPEG"))
    source = open_source(folder)
    assert source.name == f"{tmp_path}/shift-\\xe4"
    frames = list(source.frames(RecordingMonitor()))
    assert {frame.image_id for frame in frames} == {"a-\\xff.jpg", "ä.jpg", "plain.jpg"}
    assert all(Path(str(frame.image)).exists() for frame in frames)
    pattern_ = open_source(f"{tmp_path}/*/*.jpg")
    ids = {frame.image_id for frame in pattern_.frames(RecordingMonitor())}
    assert "shift-\\xe4/a-\\xff.jpg" in ids


def test_long_names_are_shortened_and_stay_different(tmp_path: Path) -> None:
    deep = Path(*["ä" * 100] * 4)
    for name in ("one", "two"):
        (tmp_path / deep / name).mkdir(parents=True)
        (tmp_path / deep / name / "part.jpg").write_bytes(encode(pattern(), "JPEG"))
    frames = list(open_source(f"{tmp_path}/**/*.jpg").frames(RecordingMonitor()))
    ids = [frame.image_id for frame in frames]
    assert len(set(ids)) == 2
    assert all(len(one.encode()) <= 512 for one in ids)
    assert [one.endswith("/part.jpg") for one in ids] == [True, True]


def test_any_source_gets_ids_that_the_log_takes() -> None:
    assert Frame(b"", "a" * 512).image_id == "a" * 512
    assert len(Frame(b"", "a" * 513).image_id) == 512
    assert Frame(b"", "\udcff").image_id == "\\xff"
