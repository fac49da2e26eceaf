"""Shapes of synthetic lesions and places for them, by volume, pieces, extent and depth."""

import numpy as np
import pytest
from scipy.ndimage import label

from evaluation import shapes
from evaluation.shapes import place, random_shape
from tests.evaluation.volumes import SHAPE, SPACING, ball, brain_and_image, rng


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.8, 1.4, 3), (2, 1.5, 1), (1, 1, 6)])
@pytest.mark.parametrize("ml", [0.5, 3, 15])
def test_a_shape_has_its_volume_and_one_piece(spacing, ml):
    size = [round(60 / s) + k for s, k in zip(spacing, (0, 5, 9), strict=True)]
    centre = [n // 2 for n in size]
    for seed in range(4):
        shape = random_shape(rng(seed), size, spacing, centre, ml)
        assert shape.shape == tuple(size) and shape.dtype == bool and shape[tuple(centre)]
        assert shape.sum() * np.prod(spacing) / 1000 == pytest.approx(ml, rel=0.2)
        assert label(shape)[1] == 1


def test_a_shape_is_as_long_in_mm_along_thick_voxels():
    spacing = np.array([1.0, 1.0, 4.0])
    spread = [
        np.std(
            np.argwhere(random_shape(rng(s), (70, 75, 19), spacing, (35, 37, 9), 10)) * spacing,
            axis=0,
        )
        for s in range(30)
    ]
    assert np.mean(spread, axis=0) == pytest.approx([np.mean(spread)] * 3, rel=0.15)


def test_spurs_that_thick_voxels_cut_off_are_dropped():
    # this seed makes one
    shape = random_shape(rng(371), (80, 75, 20), (1, 1, 6), (40, 37, 10), 0.5)
    assert label(shape)[1] == 1 and 0.8 * 500 / 6 < shape.sum() < round(500 / 6)


def test_shapes_are_long_in_one_direction_and_short_in_another(monkeypatch):
    monkeypatch.setattr(shapes, "BUMP_SIZE", 0.0)  # plain ellipsoids
    spreads = [
        np.linalg.eigvalsh(
            np.cov(np.argwhere(random_shape(rng(s), (60, 50, 45), (1, 1, 1), (30, 25, 22), 5)).T)
        )
        for s in range(9)
    ]
    assert np.median([np.sqrt(s[2] / s[0]) for s in spreads]) > 1.2


def test_shapes_are_seeded_and_vary():
    make = [random_shape(rng(s), SHAPE, SPACING, (22, 20, 15), 4) for s in (1, 1, 2)]
    assert (make[0] == make[1]).all() and (make[0] != make[2]).sum() > 0.1 * make[0].sum()
    by_box = ball(SHAPE, SPACING, np.argwhere(make[0]).mean(0), (4000 * 3 / 4 / np.pi) ** (1 / 3))
    assert (by_box != make[0]).sum() > 0.1 * make[0].sum()  # no plain ball


@pytest.mark.parametrize("thickness", [1.0, 5.0])
def test_a_picture_has_one_slice(thickness):
    shape = random_shape(rng(2), (90, 70, 1), (1, 1.5, thickness), (40, 36, 0), 1.2)
    assert shape.sum() * 1.5 * thickness == pytest.approx(1200, rel=0.2) and label(shape)[1] == 1


def test_a_shape_at_the_border_keeps_its_volume_or_fills_the_array():
    assert random_shape(rng(), SHAPE, SPACING, (0, 37, 0), 6).sum() * 3 == pytest.approx(
        6000, rel=0.02
    )
    assert random_shape(rng(), (9, 10, 11), SPACING, (4, 4, 4), 500).all()
    for seed in range(5):  # and no side is flat but at the border
        shape = random_shape(rng(seed), (60, 50, 45), (1, 1, 1), (0, 49, 0), 4)
        areas = [shape.sum((1, 2)), shape.sum((0, 2)), shape.sum((0, 1))]
        assert all(
            area[np.flatnonzero(area)[end]] < 0.3 * area.max()
            for area, end in zip(areas, (-1, 0, -1), strict=True)
        )


@pytest.mark.parametrize(
    "ml, centre", [(0, (5, 5, 5)), (float("nan"), (5, 5, 5)), (1, (5, 5, 30)), (1, (-1, 5, 5))]
)
def test_impossible_shapes_are_refused(ml, centre):
    with pytest.raises(ValueError, match=r"volume_ml|outside"):
        random_shape(rng(), SHAPE, SPACING, centre, ml)


@pytest.mark.parametrize("ml", [0.5, 4])
def test_a_place_is_deep_enough(ml):
    brain, _ = brain_and_image()
    inside = []
    places = set()
    for seed in range(20):
        voxel = place(rng(seed), brain, SPACING, ml, 2.0)
        places.add(voxel)
        assert not (
            ball(SHAPE, SPACING, voxel, 2.0 + 0.7 * (ml * 1000 * 3 / 4 / np.pi) ** (1 / 3) - 2)
            & ~brain
        ).any()
        shape = random_shape(rng(seed), SHAPE, SPACING, voxel, ml)
        inside.append((shape & brain).sum() / shape.sum())
    assert np.mean(inside) > 0.9 and min(inside) > 0.6 and len(places) > 15


def test_a_place_in_a_brain_that_is_small_flat_cut_or_empty():
    tiny = ball(SHAPE, SPACING, (20, 20, 15), 4)
    assert tiny[place(rng(), tiny, SPACING, 50, 3)]
    x, y, z = place(rng(), np.ones((60, 50, 1), bool), (1, 1, 1), 0.1, 3)
    assert 6 < x < 53 and 6 < y < 43 and z == 0  # clear of the picture's edge
    with pytest.raises(ValueError, match="empty"):
        place(rng(), np.zeros(SHAPE, bool), SPACING, 1, 3)
