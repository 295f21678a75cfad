"""Files that a device reads and the service does not: sent in a form that the service takes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from edge.cloud.client import InferenceClient
from edge.cloud.messages import Fitting, prepare
from edge.detect.images import pixels
from edge.detect.limits import DeviceImageLimits
from servicekit.errors import SightlineError
from tests.fakes.inference import Reply, serving
from tests.unit.vision.pictures import encode, pattern
from vision import decode_image, inspect_image

FITTED = Fitting((320, 256))
ANY_SIZE = Fitting(None)  # the size of the model's input is not known, or it is a classifier


def saved(path: Path, image: PIL.Image.Image, kind: str) -> Path:
    path.write_bytes(encode(image, kind))
    return path


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("fitting", [None, ANY_SIZE, FITTED])
def test_the_service_decodes_what_is_sent_of_other_formats(
    kind: str, fitting: Fitting | None, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a", pattern(400, 250), kind)
    call = prepare([path, path.read_bytes()], fitting=fitting)
    for index, data in enumerate(call.images):
        decoded = decode_image(data)  # with the service's limits
        assert decoded.shape == ((200, 320, 3) if fitting is FITTED else (250, 400, 3))
        assert (index in call.scales) is (fitting is FITTED)
    assert call.bytes_saved == 0


@pytest.mark.parametrize("fitting", [None, ANY_SIZE])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_contracts_formats_are_sent_as_they_are(
    kind: str, fitting: Fitting | None, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a", pattern(), kind)
    call = prepare([path, b"no image"], fitting=fitting)
    assert call.images == (path.read_bytes(), b"no image")


def wide() -> PIL.Image.Image:
    """Return an image with a longer side than the service takes."""
    return PIL.Image.fromarray(np.zeros((4, 16_400, 3), np.uint8))


def heavy() -> PIL.Image.Image:
    """Return an image of more bytes than the service takes, if it is not compressed."""
    return PIL.Image.fromarray(np.full((1900, 2000, 3), 90, np.uint8))


@pytest.mark.parametrize(
    ("image", "shape", "scaled"),
    [
        (encode(wide(), "PNG"), (1, 4096, 3), True),
        (np.asarray(wide()), (1, 4096, 3), True),
        (encode(heavy(), "BMP"), (1900, 2000, 3), False),
    ],
)
def test_images_that_the_service_refuses_are_made_to_fit_where_downscaling_is_on(
    image: bytes | NDArray[np.uint8], shape: tuple[int, int, int], *, scaled: bool
) -> None:
    call = prepare([image], fitting=ANY_SIZE)
    assert decode_image(call.images[0]).shape == shape
    assert (0 in call.scales) is scaled
    if scaled:
        assert (call.scales[0].width, call.scales[0].height) == (16_400, 4)
    if isinstance(image, bytes):
        assert call.bytes_saved == max(len(image) - len(call.images[0]), 0)
        assert prepare([image]).images == (image,)  # in full size, where downscaling is off


def test_the_limits_of_the_device_hold_before_anything_is_sent(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", pattern(), "PNG")
    with pytest.raises(SightlineError, match=r"images\[0\] must have at most 9 bytes") as caught:
        prepare([path], limits=DeviceImageLimits(max_bytes=9))
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("name", ["a\udcff.jpg", "\ud800", 7])
def test_a_name_that_is_no_text_is_refused_before_anything_is_sent(name: Any) -> None:
    with pytest.raises(SightlineError, match=r"image_ids\[1\] must be text that UTF-8 can encode"):
        prepare([b"a", b"b"], image_ids=["good", name])


def test_a_client_sends_a_tiff_by_its_path(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(np.asarray(pattern().convert("L")).astype(np.uint16) * 257)
    path = saved(tmp_path / "deep.tif", image, "TIFF")
    with serving(Reply()) as fake, InferenceClient(fake.target, array_format="png") as client:
        client.infer([path], image_ids=["deep.tif"])
        (seen,) = fake.seen
    data = seen.request.images[0].data
    assert inspect_image(data).format == "PNG"
    assert np.array_equal(decode_image(data), pixels(path))
    assert pixels(path).max() == np.asarray(pattern().convert("L")).max()
    with PIL.Image.open(io.BytesIO(data)) as sent:
        assert sent.mode == "RGB"
