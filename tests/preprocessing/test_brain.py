"""Brain masks against hand-made truth."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from preprocessing import background, brain


def ellipsoid(shape, centre, radii):
    grid = np.indices(shape).astype(float)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1


@pytest.mark.parametrize(
    "data",
    [
        np.array([[3, -2], [3, 32767], [-32768, 0]], np.int16),  # differences exceed the type
        np.array([[4.0, 4.0], [-8.0, 2e6]], np.float32),  # too wide to count one by one
        np.array([[4.0, 4.0], [-8.0, 12.0]], np.float32),
        np.array([[0.5, 4.0], [4.0, np.inf]], np.float32),
        np.array([[2.0, np.nan], [2.0, 1.0]]),
        np.array([[2**31 + 5, 2**31 + 5, 7]], np.uint32),
        np.array([[True, False, True]]),
        np.zeros((0, 3)),
    ],
)
def test_distinct_values_are_those_of_numpy(data):
    values, counts = background.distinct(data)
    wanted, wanted_counts = np.unique(data, return_counts=True)
    np.testing.assert_array_equal(values, wanted)
    np.testing.assert_array_equal(counts, wanted_counts)
    assert values.dtype == data.dtype


def ct_phantom(hole=False):
    """A 2 mm head in HU: air, scalp, skull, brain with a calcified plexus and a bleed.

    With `hole` the bone at one side is so thin that it reads as soft tissue.
    """
    shape = (100, 120, 90)
    centre = (50, 60, 45)
    hu = np.full(shape, -1000, np.float32)
    hu[ellipsoid(shape, centre, (42, 52, 40))] = 60
    hu[ellipsoid(shape, centre, (37, 47, 36))] = 900
    inside = ellipsoid(shape, centre, (34, 44, 33))
    hu[inside] = 35
    hu[ellipsoid(shape, (50, 45, 45), (3, 3, 3))] = 300
    hu[ellipsoid(shape, (62, 70, 50), (6, 6, 6))] = 75
    if hole:
        hu[83:92, 57:63, 42:48] = 60
    return hu, inside


@pytest.mark.parametrize("hole", [False, True])
def test_bone_and_scalp_leave_a_ct_mask_and_calcifications_stay(hole):
    hu, inside = ct_phantom(hole)
    leaky = hu > 0  # the whole head, as a mask that leaked could be
    mask = brain._inside_skull(leaky, hu)
    leak = (mask & ~inside).sum()
    # at most a stub in the gap, never the scalp
    assert leak < 0.005 * inside.sum() if hole else leak == 0
    head = ellipsoid((100, 120), (50, 60), (42, 52))
    scalp = head & ~ellipsoid((100, 120), (50, 60), (39, 49))
    assert not mask[:, :, 45][scalp].any()
    assert mask[50, 45, 45] and mask[62, 70, 50]
    assert mask.sum() > 0.75 * inside.sum()  # two voxels beside bone are given up
    if hole:
        assert (leaky & (hu == 60) & ~inside).any()


def test_voxels_that_share_bone_leave_a_ct_mask_and_fresh_blood_at_the_skull_stays():
    """A layer of partial volume at the skull goes, and a splinter apart from it.

    A bleed of 75 HU as near to the skull stays.
    """
    hu, inside = ct_phantom()
    layer = inside & ~ellipsoid(hu.shape, (50, 60, 45), (32, 42, 31))
    blood = ellipsoid(hu.shape, (50, 20, 45), (8, 8, 8)) & inside
    hu[layer & ~blood] = 95
    hu[blood] = 75
    splinter = ellipsoid(hu.shape, (78, 60, 45), (2, 3, 3))
    hu[splinter] = 400
    mask = brain._inside_skull(inside, hu)
    plexus = mask & (hu == 300)
    assert plexus.any() and not (hu[mask & ~plexus] >= 90).any()
    assert not (mask & splinter).any() and (mask & blood).sum() > 0.6 * blood.sum()
    assert mask.sum() > 0.65 * inside.sum()


def test_a_ct_mask_that_reaches_into_the_air_is_cut_back_and_air_inside_the_brain_stays():
    hu, inside = ct_phantom()
    pocket = ellipsoid(hu.shape, (40, 60, 45), (4, 4, 4))
    hu[pocket] = -900
    mask = brain._inside_skull(np.ones_like(inside), hu)  # a mask of everything
    assert not (mask & ~inside).any() and mask[pocket].all()


def test_bone_is_what_the_ct_recipe_blanks_before_deepbet():
    shown = brain._soft_tissue(np.array([-1000.0, -20, 0, 35, 80, 95, 99.9, 100, 1500]))
    np.testing.assert_array_equal(shown, [0, 0, 0, 35, 80, 80, 80, 0, 0])


@pytest.mark.slow
def test_a_stripped_scan_is_its_own_brain():
    shape = (100, 120, 90)
    affine = np.diag([2.0, 2, 2, 1])
    inside = ellipsoid(shape, (50, 60, 45), (34, 44, 33))  # 1.65 litres
    rng = np.random.default_rng(0)
    t1 = np.where(inside, rng.normal(800, 60, shape), 0).astype(np.float32)
    mask, method = brain.brain_mask(nib.Nifti1Image(t1, affine), "t1")
    assert method == "none" and (mask == inside).all()
    noisy = t1 + np.abs(rng.normal(0, 5, shape)).astype(np.float32)
    assert not brain.is_stripped(nib.Nifti1Image(noisy, affine), "t1")
    left = ellipsoid(shape, (25, 60, 45), (20, 40, 30))
    right = ellipsoid(shape, (75, 60, 45), (20, 40, 30))
    two = np.where(left | right, 5, 0).astype(np.float32)
    assert not brain.is_stripped(nib.Nifti1Image(two, affine), "t1")


def test_a_brain_cut_by_the_field_of_view_keeps_its_last_slice():
    mask = np.zeros((40, 40, 30), bool)
    mask[8:32, 8:32, 0:20] = True
    opened = brain.tidy(mask, opening=3)
    assert opened[15, 15, 0] and opened[:, :, 0].sum() == opened[:, :, 5].sum()


@pytest.mark.parametrize("opening", [1, 3, 6])
def test_an_opening_is_by_balls_of_whole_voxels(opening):
    rng = np.random.default_rng(opening)
    field = ndimage.gaussian_filter(rng.normal(size=(44, 40, 36)), 3)
    mask = field > np.quantile(field, 0.2)
    inside = np.pad(mask, 1, mode="edge")
    core = ndimage.distance_transform_edt(inside)[1:-1, 1:-1, 1:-1] > opening
    labels, _ = ndimage.label(core)
    piece = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    grown = mask & (ndimage.distance_transform_edt(~piece) <= opening + 2)
    labels, _ = ndimage.label(grown)
    wanted = ndimage.binary_fill_holes(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
    assert wanted.any()
    np.testing.assert_array_equal(brain.tidy(mask, opening), wanted)


def test_a_mask_that_fills_the_array_stays():
    assert brain.tidy(np.ones((19, 19, 19), bool), opening=6).all()


def test_a_background_of_nan_gets_a_value_of_its_own():
    shape = (30, 34, 28)
    inside = ellipsoid(shape, (15, 17, 14), (9, 11, 8))
    data = np.where(inside, np.arange(np.prod(shape)).reshape(shape) % 900 + 5.0, np.nan)
    filled, share = background.fill_background(data)
    assert share == pytest.approx((~inside).mean()) and (filled[~inside] < 5).all()
    np.testing.assert_array_equal(background.off_background(filled), inside)
    data[15, 17, 14] = np.nan  # a hole
    assert not np.isnan(background.fill_background(data)[0]).any()
    flat = np.where(inside, np.float32(600), np.float32(np.nan))
    np.testing.assert_array_equal(
        background.off_background(background.fill_background(flat)[0]), inside
    )
    scattered = np.where(inside, np.nan, 5.0)
    assert background.fill_background(scattered)[1] == 0
    data[15, 17, 14] = np.inf
    assert background.fill_background(data)[1] == 0
