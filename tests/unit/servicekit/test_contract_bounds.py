"""Each bound is the one that the comments of the contract state."""

import re
from pathlib import Path

import pytest

from servicekit import contract_bounds as bounds

PROTO = Path(__file__).parents[3] / "proto" / "sightline"
STATED = {
    "MAX_IMAGE_ID_BYTES": ("image_id", "1 to {} bytes"),
    "MAX_MODEL_NAME_BYTES": ("model_name", "1 to {} bytes"),
    "MAX_CLASS_NAME_BYTES": ("class_name", "At most {} bytes"),
    "MAX_DEVICE_ID_BYTES": ("device_id", "1 to {} bytes"),
    "MAX_IMAGE_SIDE": ("image_width", "0 to {}"),
    "MAX_DETECTIONS": ("detections", "At most {}"),
    "MAX_LABELS": ("labels", "At most {};"),
    "MAX_LABEL_BYTES": ("labels", "values at most {} bytes"),
    "MAX_CONTEXT": ("context", "At most {};"),
    "MAX_CONTEXT_KEY_BYTES": ("context", "keys 1 to {} bytes"),
    "MAX_CONTEXT_VALUE_BYTES": ("context", "values at most {} bytes"),
    "MAX_KEYPOINTS": ("keypoints", "at most {}"),
    "MAX_POLYGONS": ("polygons", "At most {} polygons"),
    "MIN_POLYGON_POINTS": ("points", "{} to 8192 points"),
    "MAX_MASK_POINTS": ("polygons", "{} points in all"),
    "MAX_RLE_BYTES": ("rle", "1 to {} bytes"),
    "MAX_POLYGON_TOLERANCE": ("polygon_tolerance", "0 to {}"),
}


def comments(field: str) -> list[str]:
    """Return the comments of all fields with this name, each as one line."""
    texts = [path.read_text() for path in sorted(PROTO.rglob("*.proto"))]
    above = rf"((?: *//.*\n)+) *(?:optional |repeated )?[\w.<>, ]+ {field} = \d+;"
    return [
        re.sub(r"\s*//\s*", " ", comment) for text in texts for comment in re.findall(above, text)
    ]


@pytest.mark.parametrize("name", STATED)
def test_the_contract_states_the_bound(name: str) -> None:
    field, words = STATED[name]
    number = f"{getattr(bounds, name):_}".replace("_", " ?")
    stated = re.compile(re.escape(words).replace(r"\{\}", rf"\b{number}\b").replace(r"\ ", " "))
    assert any(map(stated.search, comments(field))), comments(field)


def test_every_bound_is_compared() -> None:
    assert STATED.keys() == {name for name in vars(bounds) if name.isupper()}
