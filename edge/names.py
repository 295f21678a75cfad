"""Names of files as the log takes them: valid text within the bounds of its fields."""

from pathlib import Path

from servicekit.contract_bounds import MAX_IMAGE_ID_BYTES, MAX_LABEL_BYTES, MAX_MODEL_NAME_BYTES
from servicekit.names import readable


def image_id_of(name: str | Path) -> str:
    """Return a name as an image_id: at most 512 bytes; see `servicekit.names.readable`."""
    return readable(name, MAX_IMAGE_ID_BYTES)


def source_name_of(name: str | Path) -> str:
    """Return a name as the value of the label `source`: at most 1024 bytes; see `readable`."""
    return readable(name, MAX_LABEL_BYTES)


def model_name_of(path: Path) -> str:
    """Return the name of a model's file without its suffix: at most 256 bytes; see `readable`."""
    return readable(path.stem, MAX_MODEL_NAME_BYTES)
