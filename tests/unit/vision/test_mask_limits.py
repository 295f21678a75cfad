"""Masks that keep the contract's limits, and those that are made to."""

import cv2
import numpy as np
import pytest

from servicekit.contract_bounds import MAX_MASK_POINTS, MAX_POLYGONS, MAX_RLE_BYTES
from vision import PolygonMask, RleMask, decode_rle, encode_rle, fit_mask


def ring(points: int, radius: float = 1000.0, noise: float = 0.0) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = radius + noise * np.random.default_rng(0).standard_normal(points)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return (circle + radius).astype(np.float32)


@pytest.mark.parametrize(
    "mask",
    [
        RleMask(2, 4, "2113"),
        PolygonMask(()),
        PolygonMask((ring(MAX_MASK_POINTS),)),
        PolygonMask((ring(3),) * MAX_POLYGONS),
    ],
)
def test_a_mask_within_the_limits_stays_as_it_is(mask: RleMask | PolygonMask) -> None:
    assert fit_mask(mask) is mask


def test_the_smallest_parts_go_first() -> None:
    rings = tuple(ring(3, radius=1000.0 - at) for at in range(MAX_POLYGONS + 1))
    fitted = fit_mask(PolygonMask(rings))
    assert isinstance(fitted, PolygonMask)
    assert len(fitted.rings) == MAX_POLYGONS
    assert fitted.rings[-1] is rings[MAX_POLYGONS - 1]


@pytest.mark.parametrize("noise", [0.0, 20.0])
def test_too_many_points_become_fewer_of_the_same_shape(noise: float) -> None:
    exact = ring(2 * MAX_MASK_POINTS, noise=noise)
    fitted = fit_mask(PolygonMask((exact,)), 0.0)
    assert isinstance(fitted, PolygonMask)
    assert 3 <= sum(map(len, fitted.rings)) <= MAX_MASK_POINTS
    areas = [abs(cv2.contourArea(each)) for each in (exact, *fitted.rings)]
    assert areas[1] == pytest.approx(areas[0], rel=0.05)


def test_run_lengths_that_are_too_long_become_polygons() -> None:
    stripes = np.zeros((2000, 2000), np.bool_)
    stripes[::2, 1:-1] = True
    stripes[:, 1] = True  # a comb: one part
    mask = encode_rle(stripes, left=0, top=0, width=2000, height=2000)
    assert len(mask.counts) > MAX_RLE_BYTES
    fitted = fit_mask(mask)
    assert isinstance(fitted, PolygonMask)
    assert 3 <= sum(map(len, fitted.rings)) <= MAX_MASK_POINTS
    assert not decode_rle(mask)[:, 0].any()
