"""Metadata of exporters, valid and invalid."""

import pytest

from tests.unit.vision.models import LABELS, METADATA
from vision import ModelError, ModelMetadata, parse_metadata


def test_the_keys_of_an_export_are_read() -> None:
    assert parse_metadata({**METADATA, "head": "Detect", "author": "nobody"}) == ModelMetadata(
        names=LABELS,
        input_size=(64, 96),
        stride=32,
        task="detect",
        head="Detect",
        end_to_end=False,
    )


def test_a_file_that_says_nothing_says_nothing() -> None:
    assert parse_metadata({}) == ModelMetadata()


@pytest.mark.parametrize("raw", [{"end2end": "True"}, {"args": "{'nms': True}"}])
def test_both_ways_to_say_end_to_end(raw: dict[str, str]) -> None:
    assert parse_metadata(raw).end_to_end


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", "{0: 'a', 2: 'b'}"),
        ("names", "{'0': 'a'}"),
        ("names", "{True: 'a', False: 'b'}"),
        ("names", "{0: 1}"),
        ("names", "{}"),
        ("names", "['a', 'b']"),
        ("names", "__import__('os').getcwd()"),
        ("names", "{0: 'a'"),
        ("names", "(" * 10_000),
        ("names", "[" * 100 + "]" * 100),
        ("names", "-" * 3_000 + "1"),
        ("names", "-" * 100_000 + "1"),
        ("imgsz", "640"),
        ("imgsz", "[640]"),
        ("imgsz", "[0, 640]"),
        ("imgsz", "[640.0, 640.0]"),
        ("stride", "0"),
        ("stride", "thirty-two"),
        ("end2end", "1"),
        ("args", "[]"),
    ],
)
def test_a_bad_value_is_refused_under_its_key(key: str, value: str) -> None:
    with pytest.raises(ModelError, match=f"key '{key}' must be") as caught:
        parse_metadata({**METADATA, key: value})
    assert caught.value.reason == "MODEL_METADATA_INVALID"
    assert len(caught.value.message) < 200
