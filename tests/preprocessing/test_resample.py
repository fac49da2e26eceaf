"""Resampling: values are scipy's, and maps return to the scan's own grid."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

from preprocessing import register
from preprocessing.images import Grid
from preprocessing.quality import dice
from preprocessing.resample import carry_mask, resample
from tests.preprocessing.spaces import apply, atlas_centre, moved_grid, rigid_motion, voxel_points


def test_a_map_carried_to_the_atlas_and_back_keeps_its_grid_and_a_5_ml_blob():
    atlas = register.load_atlas()
    motion = rigid_motion([6, -4, 5], np.array([4.0, -6, 3]), atlas_centre(atlas))
    grid = moved_grid(atlas, motion, (1.2, 1.6, 2.0), (-1, 1, 1), (150, 120, 90))
    place = apply(motion, atlas_centre(atlas)[None])[0] + [20, 15, -10]
    radius = (5000 * 3 / (4 * np.pi)) ** (1 / 3)  # of 5 ml
    blob = np.linalg.norm(voxel_points(grid) - place, axis=-1) <= radius
    assert blob.sum() * np.prod(grid.spacing) == pytest.approx(5000, rel=0.03)

    in_atlas = carry_mask(blob, grid, atlas.grid, motion)
    back = carry_mask(in_atlas, atlas.grid, grid, np.linalg.inv(motion))
    assert back.shape == grid.shape and dice(back, blob) >= 0.9
    soft = resample(in_atlas.astype(np.float32), atlas.grid, grid, np.linalg.inv(motion))
    assert dice(soft > 0.5, blob) >= 0.9


def test_resample_is_trilinear_and_pads():
    data = np.random.default_rng(1).normal(size=(7, 9, 11))
    spacing = (2, 3, 1.5)
    grid = Grid(data.shape, np.diag([*spacing, 1.0]))
    target = np.eye(4)
    target[:3, 3] = [1.3, 2.1, 0.4]
    onto = Grid((8, 10, 9), target)
    axes = [np.arange(n) * s for n, s in zip(data.shape, spacing, strict=True)]
    wanted = RegularGridInterpolator(axes, data)(voxel_points(onto))
    np.testing.assert_allclose(resample(data, grid, onto, pad=-1024), wanted, atol=1e-9)

    target[:3, 3] = [500, 0, 0]
    away = Grid((2, 2, 2), target)
    assert (resample(data, grid, away, pad=-1024) == -1024).all()
    assert resample(data, grid, away, pad=None)[0, 0, 0] == pytest.approx(data[-1, 0, 0])


def partly_filled(rng, shape, pad):
    """An array of `pad`, but for a box of values."""
    data = np.full(shape, pad, np.float32)
    low = [rng.integers(0, n // 2) for n in shape]
    inside = tuple(slice(a, rng.integers(a + 1, n)) for a, n in zip(low, shape, strict=True))
    data[inside] = 1 + rng.random(data[inside].shape)
    return data


@pytest.mark.parametrize("kind", ["f4", ">f4", "f8", "i2", ">i2", "u1", "i8"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_arrays_of_any_type_are_carried_as_scipy_does(kind, order, layout):
    """To the bit, whether filled to its border, as `block` 0, or not."""
    rng = np.random.default_rng(3)
    turn = rigid_motion([20, -15, 30], np.full(3, 6.0), np.zeros(3))
    onto = Grid((18, 14, 16), turn @ np.diag([0.8, 1.1, 0.9, 1]))
    for block in (0, 3):
        data = np.zeros((13, 12, 11), kind, order=layout)
        inside = (slice(block, 13 - block), slice(block, 12 - block), slice(block, 11 - block))
        data[inside] = rng.integers(1, 100, data[inside].shape)
        expected = ndimage.affine_transform(
            data, onto.affine[:3, :3], onto.affine[:3, 3], onto.shape, order=order
        )
        got = resample(data, Grid(data.shape, np.eye(4)), onto, order=order)
        assert got.dtype == data.dtype and (got != 0).any()
        np.testing.assert_array_equal(got, expected)


def test_resampling_in_a_box_is_scipy_s_of_the_whole():
    """Sheared grids, any padding, data that fill a part of theirs or none."""
    rng = np.random.default_rng(0)
    for trial in range(25):
        shape = tuple(rng.integers(8, 24, 3))
        wanted = tuple(rng.integers(8, 30, 3))
        pad = float(rng.choice([0, -1024]))
        data = partly_filled(rng, shape, pad) if trial else np.full(shape, pad, np.float32)
        affine = np.eye(4)
        affine[:3] = rng.normal(size=(3, 4)) * (1, 1, 1, 3)
        target = affine @ np.diag([0.7, 0.8, 0.9, 1])
        target[:3, 3] += 2 * rng.normal(size=3)
        grid = Grid(shape, affine)
        onto = Grid(wanted, target)

        matrix = np.linalg.inv(affine) @ target
        whole = {"matrix": matrix[:3, :3], "offset": matrix[:3, 3], "output_shape": wanted}
        padded = {"mode": "constant", "cval": pad}
        for order in (0, 1):
            expected = ndimage.affine_transform(data, order=order, **padded, **whole)
            got = resample(data, grid, onto, order=order, pad=pad)
            np.testing.assert_allclose(got, expected, atol=1e-3)

        within = np.zeros(wanted, bool)
        within[2:5, 3:4, 1:7] = True
        expected = ndimage.affine_transform(data, order=1, mode="nearest", **whole)
        got = resample(data, grid, onto, pad=None, within=within)
        np.testing.assert_allclose(got[within], expected[within], atol=1e-3)
        assert not got[6:].any() and not got[:, :, 8:].any()
