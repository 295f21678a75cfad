"""Masks of other libraries, as records within the limits of the contract."""

from collections import Counter
from typing import Any

import pytest

from edge.detect.masks import masks_of_results, record_of
from edge.records import Mask
from servicekit.contract_bounds import MAX_MASK_POINTS, MAX_POLYGONS, MAX_RLE_BYTES
from vision import PolygonMask, RleMask, decode_rle, encode_rle

np = pytest.importorskip("numpy")
cv2 = pytest.importorskip("cv2")


def blobs(seed: int, size: tuple[int, int]) -> Any:
    """Return smooth shapes without holes, as a model's masks are."""
    noise = np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32)
    height, width = size
    high = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) > 0.5
    found, _ = cv2.findContours(high.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    whole = np.zeros(size, np.uint8)
    cv2.fillPoly(whole, found, 1)
    return whole


def drawn(mask: Mask | None, size: tuple[int, int]) -> Any:
    assert mask is not None
    if mask.rle:
        assert (mask.height, mask.width) == size
        return decode_rle(RleMask(*size, mask.rle))
    pixels = np.zeros(size, np.uint8)
    for polygon in mask.polygons:
        cv2.fillPoly(pixels, [np.round(np.reshape(polygon, (-1, 2))).astype(np.int32)], 1)
    return pixels > 0


def overlap(one: Any, other: Any) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize(
    ("large", "size"),
    [
        ((640, 640), (1080, 1920)),  # padded above and below
        ((640, 640), (1080, 810)),  # padded on the left and on the right
        ((384, 640), (720, 1280)),  # padded by a few rows
        ((640, 640), (300, 400)),  # a small image
        ((480, 640), (480, 640)),  # masks of the image (`retina_masks`)
        ((32, 32), (7, 3000)),  # no pixel of the input for a row of the image
    ],
)
@pytest.mark.parametrize(("form", "least"), [("rle", 0.99), ("polygon", 0.98)])
def test_masks_of_the_input_are_enlarged_as_ultralytics_does(
    large: tuple[int, int], size: tuple[int, int], form: Any, least: float
) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("ultralytics.utils.ops")
    bitmaps = np.stack([blobs(seed, large) for seed in range(3)])
    theirs = ops.scale_masks(torch.from_numpy(bitmaps)[None].float(), size)[0].numpy() > 0.5
    left_out: Counter[str] = Counter()
    masks = masks_of_results(bitmaps, size, form, 1.0, left_out)
    for mask, expected in zip(masks, theirs, strict=True):
        if expected.any():
            assert overlap(drawn(mask, size), expected) >= (least if size[0] > 7 else 0.9)
    assert not left_out


@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_masks_at_the_edges_and_of_one_pixel(form: Any) -> None:
    bitmaps = np.zeros((4, 20, 30), bool)
    bitmaps[0, :, :] = True
    bitmaps[1, 19, 29] = True
    bitmaps[2, 0, 3:9] = True
    masks = masks_of_results(bitmaps, (20, 30), form, 1.0, Counter())
    for mask, bitmap in zip(masks[:3], bitmaps, strict=False):
        assert np.array_equal(drawn(mask, (20, 30)), bitmap)
    assert masks[3] is None


def test_a_mask_of_the_whole_input_is_one_of_the_whole_image() -> None:
    bitmap = np.zeros((32, 32), bool)
    bitmap[7:25] = True  # the rest is padding
    (mask,) = masks_of_results(bitmap[None], (90, 160), "rle", 1.0, Counter())
    assert drawn(mask, (90, 160)).all()


@pytest.mark.parametrize("kind", [bool, "uint8", "float32"])
def test_pixels_of_any_type(kind: Any) -> None:
    bitmap = blobs(1, (64, 64))
    (mask,) = masks_of_results(bitmap[None].astype(kind), (64, 64), "rle", 1.0, Counter())
    assert np.array_equal(drawn(mask, (64, 64)), bitmap > 0)


def test_the_tolerance_is_a_distance_in_pixels_of_the_image() -> None:
    bitmap = blobs(3, (640, 640))[None]
    counts = [
        sum(len(p) // 2 for p in mask.polygons)
        for tolerance in (0, 1, 4)
        for mask in masks_of_results(bitmap, (1280, 1280), "polygon", tolerance, Counter())
        if mask is not None
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[1] > 4 * counts[2] > 0


def test_many_parts_and_points_are_simplified_and_counted() -> None:
    noise = np.random.default_rng(0).random((700, 700)) > 0.8
    for form in ("polygon", "rle"):
        left_out: Counter[str] = Counter()
        (mask,) = masks_of_results(noise[None], (700, 700), form, 0.0, left_out)
        assert mask is not None
        assert len(mask.polygons) <= MAX_POLYGONS
        assert len(mask.rle) <= MAX_RLE_BYTES
        assert left_out == {"mask_detail": 1}


def test_a_long_outline_is_simplified_until_it_fits() -> None:
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    reach = 3000 + 200 * np.sin(900 * angle)
    ring = np.column_stack([reach * np.cos(angle), reach * np.sin(angle)]) + 4000
    left_out: Counter[str] = Counter()
    mask = record_of(PolygonMask((ring.astype(np.float32),)), 0.0, left_out)
    assert mask is not None
    assert 100 < sum(len(polygon) // 2 for polygon in mask.polygons) <= MAX_MASK_POINTS
    assert left_out == {"mask_detail": 1}


def test_what_fits_is_not_changed() -> None:
    left_out: Counter[str] = Counter()
    encoded = encode_rle(np.ones((3, 4), bool), left=1, top=2, width=10, height=20)
    assert record_of(encoded, 1.0, left_out) == Mask(rle=encoded.counts, width=10, height=20)
    ring = np.array([(0, 0), (5, 0), (5, 5)], np.float32)
    assert record_of(PolygonMask((ring,)), 1.0, left_out) == Mask(polygons=[ring])
    assert record_of(PolygonMask(()), 1.0, left_out) is None
    assert not left_out
