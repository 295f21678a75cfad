"""Sources made from the words that a person types, and their device ids."""

from pathlib import Path

import pytest

from edge.commands.sources import (
    check_placeholders,
    device_ids,
    length_of,
    open_sources,
    short_name,
    skipped_of,
)
from edge.sources.camera import Camera
from servicekit.terminal import CommandError
from tests.unit.edge.sources.monitors import RecordingMonitor, save_pictures, save_video


def test_the_same_source_twice_is_two(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "images", "a.jpg", "b.jpg")
    first, second, third = open_sources([str(folder)] * 3, 1, None)
    assert [one.name for one in (first, second, third)] == [
        str(folder),
        f"{folder} (2)",
        f"{folder} (3)",
    ]
    ids = [[frame.image_id for frame in one.frames(RecordingMonitor())] for one in (first, second)]
    assert ids == [["a.jpg", "b.jpg"]] * 2
    assert length_of(first) == length_of(second) == 2


@pytest.mark.parametrize(
    ("device_id", "said"),
    [
        ("gate-{surce}", r"\{surce\} is no placeholder, did you mean \{source\}\?"),
        ("gate-{source}-{n}", r"\{n\} is no placeholder: \{source\} is the only one"),
        ("gate-{source", r"\{source is no placeholder, did you mean \{source\}\?"),
        ("gate-source}", r"gate-source\} is no placeholder"),
        ("gate-{}", r"\{\} is no placeholder"),
    ],
)
def test_placeholders_that_are_none(device_id: str, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        check_placeholders(device_id)


def test_the_placeholder_may_stand_anywhere() -> None:
    for device_id in ("gate-1", "gate-{source}", "{source}", "{source}-{source}"):
        check_placeholders(device_id)


def test_what_a_folder_has_and_is_not_read_is_named_once(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "images", "a.jpg")
    words = [str(folder), str(folder), "rtsp://127.0.0.1:1/live", str(folder / "a.jpg")]
    assert skipped_of(words) == []
    (folder / ".hidden").touch()
    (folder / "b.heic").touch()
    assert skipped_of(words) == [f"{folder}: skipped 1 file without the suffix of an image (.heic)"]
    (folder / "notes").touch()
    (folder / "more").mkdir()
    (sentence,) = skipped_of(words)
    assert sentence == (
        f"{folder}: skipped 2 files without the suffix of an image (.heic, no suffix) and 1 folder"
        f" ('{folder}/**/*.jpg' reads them too)"
    )


def test_videos_of_a_folder_are_to_be_named(tmp_path: Path) -> None:
    for name in ("a.MP4", "b.mp4"):
        (tmp_path / name).touch()
    said = f"(.mp4) (name videos themselves: {tmp_path}/*.MP4)"
    with pytest.raises(CommandError) as raised:
        open_sources([str(tmp_path)], 1, None)
    assert said in str(raised.value)
    save_pictures(tmp_path, "c.jpg")
    (sentence,) = skipped_of([str(tmp_path)])
    assert sentence.endswith(said)
    with pytest.raises(CommandError, match="Leave out its quotes, so that the shell names each"):
        open_sources([f"{tmp_path}/*.mp4"], 1, None)


def test_cameras_that_differ_in_their_secrets_only_are_two() -> None:
    urls = [f"rtsp://127.0.0.1:1/live?token={number}" for number in range(2)]
    assert [one.name for one in open_sources(urls, 1, None)] == [
        "rtsp://127.0.0.1:1/live",
        "rtsp://127.0.0.1:1/live (2)",
    ]


def test_the_length_is_known_of_images_and_videos_and_not_of_cameras(tmp_path: Path) -> None:
    video = save_video(tmp_path / "clip.mp4", frames=7)
    (source,) = open_sources([str(video)], 1, None)
    assert length_of(source) is None  # until it is opened
    assert len(list(source.frames(RecordingMonitor()))) == 7
    assert length_of(source) == 7
    assert length_of(Camera("rtsp://127.0.0.1:1/live")) is None


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("{folder}/nothing/", "There is no folder {folder}/nothing/"),
        ("{folder}/nothing", "There is no folder {folder}/nothing"),
        ("{folder}/nothing.jpg", "There is no file {folder}/nothing.jpg"),
        ("{folder}/nothing.mp4", "There is no file {folder}/nothing.mp4"),
        ("{folder}/*.png", "No file matches {folder}/*.png"),
        (
            "{folder}",
            "The folder {folder} has no image in it, but 1 file without the suffix of an image",
        ),
    ],
)
def test_what_is_missing_is_said_in_plain_words(word: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(CommandError) as raised:
        open_sources([word.format(folder=tmp_path)], 1, None)
    assert str(raised.value).startswith(sentence.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("rtsp://10.0.0.7:554/line-4?channel=2", "10.0.0.7-554-line-4-channel-2"),
        ("rtsp://10.0.0.7/live (2)", "10.0.0.7-live"),
        ("camera-0", "camera-0"),
        ("images/line 4", "line-4"),
        ("images/line 4/*.jpg", "line-4"),
        ("{folder}/clip.mp4", "clip"),
        ("***", None),
    ],
)
def test_short_names(name: str, short: str | None, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    expected = short or Path.cwd().name
    assert short_name(name.format(folder=tmp_path)) == expected


def test_each_source_gets_a_device_id_of_its_own(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "line-4", "a.jpg")
    sources = open_sources([str(folder), str(folder), "rtsp://10.0.0.7/live"], 1, None)
    assert device_ids("gate-{source}", sources) == [
        "gate-line-4",
        "gate-line-4-2",
        "gate-10.0.0.7-live",
    ]


def test_a_name_that_looks_numbered_is_not_given_twice(tmp_path: Path) -> None:
    words = [save_pictures(tmp_path / name, "a.jpg") for name in ("b/a", "c/a", "a-2")]
    sources = open_sources(list(map(str, words)), 1, None)
    assert device_ids("gate-{source}", sources) == ["gate-a", "gate-a-2", "gate-a-2-2"]


def test_a_folder_that_is_named_like_the_second_of_another_is_a_source_of_its_own(
    tmp_path: Path,
) -> None:
    words = [save_pictures(tmp_path / name, "a.jpg") for name in ("a", "a (2)")]
    sources = open_sources([str(words[0]), *map(str, words)], 1, None)
    names = [source.name for source in sources]
    assert names == [str(words[0]), f"{words[0]} (2)", f"{words[1]} (2)"]
