"""Spool files, and their contents, for tests."""

from pathlib import Path

from sightline.types.v1 import prediction_pb2

from edge.log.encode import prediction_body
from edge.records import Prediction
from edge.spool.entries import Dropped, Entry, Gap
from edge.spool.file import SpoolFile

ALL = (1_000_000, 1 << 30)


def body(name: str) -> bytes:
    return prediction_body(Prediction(name, "m"), 0.0)


def opened(folder: Path) -> SpoolFile:
    return SpoolFile(folder / "spool.db", "gate-1")


def fill(file: SpoolFile, *entries: str | Dropped, spooled_at: float = 100.0) -> None:
    with file.transaction():
        bodies = [entry if isinstance(entry, Dropped) else body(entry) for entry in entries]
        file.append(bodies, spooled_at, 7.0)


def name(entry: Entry) -> str:
    """Return an entry in short form for comparisons: `3:image` or `4-6 SPOOL_AGE`."""
    if isinstance(entry, Gap):
        return f"{entry.first}-{entry.last} {entry.reason.name}"
    prediction = prediction_pb2.Prediction.FromString(entry.prediction)
    assert prediction.sequence == entry.sequence
    return f"{entry.sequence}:{prediction.image_id}"


def names(file: SpoolFile, after: int = 0) -> list[str]:
    entries, missing = file.read(after, *ALL)
    assert missing == []
    return [name(entry) for entry in entries]
