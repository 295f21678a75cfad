"""Transfer of images between processes, with and without shared memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.detect.frames import FrameReader, FrameWriter


@pytest.fixture(params=[True, False], ids=["shared", "in-message"])
def writer(request: pytest.FixtureRequest) -> Iterator[FrameWriter]:
    writer = FrameWriter(shared=request.param)
    yield writer
    writer.close()


def test_arrays_and_bytes_arrive_as_they_were(writer: FrameWriter) -> None:
    reader = FrameReader(writer.fd)
    for side in (1, 2000, 5):
        array = np.arange(side * side * 3, dtype=np.uint32).astype(np.uint8)
        image = array.reshape(side, side, 3)[:, ::-1]
        assert np.array_equal(np.asarray(reader.get(writer.put(image))), image)
        assert reader.get(writer.put(image.tobytes())) == image.tobytes()
    assert reader.get(writer.put(b"")) == b""


def test_a_path_does_not_depend_on_the_folder_one_is_in(writer: FrameWriter) -> None:
    reader = FrameReader(writer.fd)
    assert reader.get(writer.put("a.jpg")) == str(Path.cwd() / "a.jpg")
    assert reader.get(writer.put(Path("/b.jpg"))) == "/b.jpg"


def test_a_reader_that_keeps_an_image_does_not_stop_the_memory_from_growing() -> None:
    writer = FrameWriter()
    reader = FrameReader(writer.fd)
    kept = reader.get(writer.put(np.full((2, 2, 3), 7, np.uint8)))
    large = np.full((1500, 1500, 3), 9, np.uint8)
    assert np.array_equal(np.asarray(reader.get(writer.put(large))), large)
    assert np.asarray(kept).shape == (2, 2, 3)
    writer.close()


def test_without_memory_an_image_must_be_in_the_message() -> None:
    writer = FrameWriter()
    request = writer.put(b"picture")
    with pytest.raises(ValueError, match="there is no shared memory"):
        FrameReader(None).get(request)
    writer.close()
