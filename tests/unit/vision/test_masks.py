"""Masks as COCO's run lengths and as polygons, against definitions and pycocotools."""

import sys
from itertools import groupby

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision import (
    ModelError,
    PolygonMask,
    RleMask,
    check_mask_format,
    decode_rle,
    encode_rle,
    trace_polygons,
)
from vision.masks import _opencv

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))


def coco_counts(mask: np.ndarray) -> str:
    """Return the compressed counts by COCO's description, one number and character at a time."""
    runs = [(value, len(list(group))) for value, group in groupby(mask.T.ravel().tolist())]
    counts = [0] * (runs[0][0] is True) + [length for _, length in runs]
    text = ""
    for at, count in enumerate(counts):
        number = count - counts[at - 2] if at > 2 else count
        while True:
            digit, number = number & 31, number >> 5
            ends = number == (-1 if digit & 16 else 0)
            text += chr(48 + digit + (0 if ends else 32))
            if ends:
                break
    return text


@st.composite
def crops(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, int], np.ndarray]:
    """Return a crop, its place in an image, and the mask of the whole image."""
    height, width = draw(SHAPES)
    rows, columns = draw(st.integers(0, height)), draw(st.integers(0, width))
    top, left = draw(st.integers(0, height - rows)), draw(st.integers(0, width - columns))
    share = draw(st.sampled_from([0, 0.05, 0.5, 0.95, 1]))
    crop = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((rows, columns)) < share
    whole = np.zeros((height, width), dtype=np.bool_)
    whole[top : top + rows, left : left + columns] = crop
    return crop, {"left": left, "top": top, "width": width, "height": height}, whole


@given(crops())
def test_run_lengths_are_those_of_the_whole_image(
    case: tuple[np.ndarray, dict[str, int], np.ndarray],
) -> None:
    crop, place, whole = case
    mask = encode_rle(crop, **place)
    assert (mask.height, mask.width) == whole.shape
    assert mask.counts == coco_counts(whole)
    assert np.array_equal(decode_rle(mask), whole)


@given(crops())
def test_run_lengths_are_those_of_pycocotools(
    case: tuple[np.ndarray, dict[str, int], np.ndarray],
) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    crop, place, whole = case
    theirs = coco.encode(np.asfortranarray(whole.astype(np.uint8)))
    assert encode_rle(crop, **place).counts == theirs["counts"].decode()


@pytest.mark.parametrize(
    ("inside", "counts"),  # as pycocotools 2.0.11 writes them
    [
        (np.s_[0:0], "Pfak2"),
        (np.s_[:], "0Pfak2"),
        (np.s_[1000:1200, 1998:], "`g_k2X6dX10hPO"),
        (np.s_[:, 1000:1003], r"Pkh]1d\4\^d]1"),
    ],
)
def test_long_runs(inside: tuple[slice, ...], counts: str) -> None:
    whole = np.zeros((1500, 2000), dtype=np.bool_)
    whole[inside] = True
    mask = encode_rle(whole, left=0, top=0, width=2000, height=1500)
    assert np.array_equal(decode_rle(mask), whole)
    assert mask.counts == counts


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (3, 0), (0, 2)])
def test_a_crop_outside_the_image_is_refused(place: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="inside the image of 4 x 3 pixels"):
        encode_rle(np.ones((2, 2), np.bool_), left=place[0], top=place[1], width=4, height=3)


@pytest.mark.parametrize("counts", ["", "P", "1", "0", " 11", "~", "ÿ8", "PPPPPPPPPPPPPPP0", "8?1"])
def test_counts_of_no_mask_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="counts must be"):
        decode_rle(RleMask(height=2, width=4, counts=counts))


def filled(mask: PolygonMask, shape: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(shape, dtype=np.uint8)
    for ring in mask.rings:  # one at a time: pixels in two rings are inside
        cv2.fillPoly(canvas, [ring.astype(np.int32)], 1)
    return canvas.astype(np.bool_)


def without_holes(mask: np.ndarray) -> np.ndarray:
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    cv2.floodFill(outside, None, (0, 0), 2)
    inside: np.ndarray = outside[1:-1, 1:-1] != 2
    return inside


@given(crops())
def test_exact_polygons_fill_the_mask(
    case: tuple[np.ndarray, dict[str, int], np.ndarray],
) -> None:
    crop, place, whole = case
    mask = trace_polygons(crop, left=place["left"], top=place["top"], tolerance=0)
    assert all(len(ring) >= 3 and ring.dtype == np.float32 for ring in mask.rings)
    areas = [cv2.contourArea(ring) for ring in mask.rings]
    assert areas == sorted(areas, reverse=True)
    assert np.array_equal(filled(mask, whole.shape), without_holes(whole))


@pytest.mark.parametrize("tolerance", [0.5, 1, 4])
def test_polygons_stay_within_the_tolerance(tolerance: float) -> None:
    y, x = np.mgrid[:200, :300]
    disc = (x - 150) ** 2 + (y - 100) ** 2 < 80**2
    exact = trace_polygons(disc, left=7, top=9, tolerance=0)
    mask = trace_polygons(disc, left=7, top=9, tolerance=tolerance)
    ((ring,), (outline,)) = mask.rings, exact.rings
    assert 8 <= len(ring) < len(outline) / 2
    distances = [
        abs(cv2.pointPolygonTest(ring, (float(px), float(py)), measureDist=True))
        for px, py in outline
    ]
    assert max(distances) <= tolerance + 1e-3
    assert ring.min(axis=0).tolist() >= [150 - 80 + 7, 100 - 80 + 9]


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_a_tolerance_out_of_range_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be at least 0"):
        trace_polygons(np.ones((2, 2), np.bool_), left=0, top=0, tolerance=tolerance)


def test_polygons_without_opencv_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_mask_format("polygon")
    monkeypatch.setitem(sys.modules, "cv2", None)  # what an import finds where it is missing
    _opencv.cache_clear()
    check_mask_format("rle")
    with pytest.raises(ModelError, match="install opencv-python-headless, or choose") as caught:
        check_mask_format("polygon")
    assert caught.value.reason == "MODEL_UNSUPPORTED"
