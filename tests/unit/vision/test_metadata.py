"""Metadata of exporters, in every form that they and people write it."""

import pytest

from tests.unit.vision.models import LABELS, METADATA
from vision import ModelMetadata, parse_metadata


def test_the_keys_of_an_export_are_read() -> None:
    assert parse_metadata({**METADATA, "head": "Detect", "author": "nobody"}) == ModelMetadata(
        names=LABELS,
        input_size=(64, 96),
        stride=32,
        task="detect",
        head="Detect",
        end_to_end=False,
        by_ultralytics=True,
    )


def test_a_file_that_says_nothing_says_nothing() -> None:
    assert parse_metadata({}) == ModelMetadata()


@pytest.mark.parametrize(
    "raw",
    [
        {"end2end": "True"},
        {"end2end": "true"},
        {"end2end": "1"},
        {"args": "{'nms': True}"},
        {"args": '{"nms": true}'},
        {"args": "{'nms': 'True'}"},
    ],
)
def test_both_ways_to_say_end_to_end(raw: dict[str, str]) -> None:
    assert parse_metadata(raw).end_to_end


@pytest.mark.parametrize(
    ("key", "text", "attribute", "value"),
    [
        ("names", "['a', 'b']", "names", {0: "a", 1: "b"}),
        ("names", "('a', 'b')", "names", {0: "a", 1: "b"}),
        ("names", "{'0': 'a', '1': 'b'}", "names", {0: "a", 1: "b"}),
        ("names", '{"0": "a", "1": "b"}', "names", {0: "a", 1: "b"}),
        ("names", '["a", "b"]', "names", {0: "a", 1: "b"}),
        ("names", "{1: 'b', 0: 'a'}", "names", {0: "a", 1: "b"}),
        ("names", "{0: 7, 1: True}", "names", {0: "7", 1: "True"}),
        ("imgsz", "640", "input_size", (640, 640)),
        ("imgsz", " 640\n", "input_size", (640, 640)),
        ("imgsz", "[640]", "input_size", (640, 640)),
        ("imgsz", "(480, 640)", "input_size", (480, 640)),
        ("imgsz", "480, 640", "input_size", (480, 640)),
        ("imgsz", "[480.0, 640.0]", "input_size", (480, 640)),
        ("imgsz", "['480', '640']", "input_size", (480, 640)),
        ("stride", "32.0", "stride", 32),
        ("stride", "[8, 16, 32]", "stride", 32),
        ("task", " Detect\n", "task", "detect"),
        ("kpt_shape", "(17, 3)", "keypoint_shape", (17, 3)),
        ("kpt_names", "{0: ['nose', 'tail']}", "keypoint_names", ("nose", "tail")),
        ("kpt_names", "{0: ['a', 'b'], 1: ['a', 'b']}", "keypoint_names", ("a", "b")),
        ("kpt_names", "['nose', 'tail']", "keypoint_names", ("nose", "tail")),
        ("description", "Ultralytics YOLOv8n model", "by_ultralytics", True),
        ("author", "Ultralytics", "by_ultralytics", True),
        ("description", "Ultralytics rtdetr-l model", "is_rtdetr", True),
        ("description", "Ultralytics YOLOv8n model trained on rtdetr.yaml", "is_rtdetr", False),
        ("head", "RTDETRDecoder", "is_rtdetr", True),
    ],
)
def test_every_common_form_is_read(key: str, text: str, attribute: str, value: object) -> None:
    metadata = parse_metadata({key: text})
    assert getattr(metadata, attribute) == value
    assert metadata.unreadable == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", "{0: 'a', 2: 'b'}"),
        ("names", "{'0': 'a', 0: 'b'}"),
        ("names", "{True: 'a', False: 'b'}"),
        ("names", "{0: ['a']}"),
        ("names", "{}"),
        ("names", "[]"),
        ("names", "plate"),
        ("names", "__import__('os').getcwd()"),
        ("names", "{0: 'a'"),
        ("names", "(" * 10_000),
        ("names", "[" * 100 + "]" * 100),
        ("names", "-" * 3_000 + "1"),
        ("names", "-" * 100_000 + "1"),
        ("names", "['" + "a" * 1_000_000 + "']"),
        ("imgsz", "0"),
        ("imgsz", "[0, 640]"),
        ("imgsz", "[640.5, 640]"),
        ("imgsz", "640x480"),
        ("imgsz", "[3, 640, 640]"),
        ("imgsz", "1e999"),
        ("imgsz", "True"),
        ("stride", "0"),
        ("stride", "thirty-two"),
        ("stride", "[]"),
        ("end2end", "maybe"),
        ("args", "[]"),
        ("kpt_shape", "[17, 4]"),
        ("kpt_shape", "51"),
        ("kpt_names", "{0: ['a'], 1: ['b']}"),
        ("kpt_names", "nose"),
    ],
)
def test_a_bad_value_is_noted_under_its_key_and_blocks_no_other(key: str, value: str) -> None:
    metadata = parse_metadata({**METADATA, key: value})
    assert list(metadata.unreadable) == [key]
    assert metadata.missing(key).startswith(f"key '{key}' must be")
    assert len(metadata.missing(key)) < 250
    assert metadata.task == "detect"


def test_a_key_that_is_not_there_is_missing() -> None:
    assert parse_metadata({}).missing("names") == "key 'names' is missing"
