"""Preparation in parts: each can be called alone, and they carry a scan there and back."""

import imageio.v3 as iio
import nibabel as nib
import numpy as np
import pytest

from preprocessing import prepare, quality, register
from preprocessing.images import Grid, read_image
from preprocessing.quality import dice
from preprocessing.recipe import Intensity, Limits, Recipe, Series
from preprocessing.resample import carry_mask
from preprocessing.scans import Scan, ScanError
from tests.preprocessing.spaces import atlas_centre, moved_grid, moved_head, rigid_motion

RECIPE = Recipe(
    modality="t1",
    intensity=Intensity(kind="percentiles", low=1, high=95, top=0.75),
    registration_spacing=6.0,
)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A stripped head on an oblique grid, and a second sequence on the same grid."""
    folder = tmp_path_factory.mktemp("scan")
    atlas = register.load_atlas()
    motion = rigid_motion([6, -4, 5], np.array([4.0, -6, 3]), atlas_centre(atlas))
    grid = moved_grid(atlas, motion, (1.9, 2.1, 2.3), (-1, 1, 1), (100, 110, 90))
    brain = carry_mask(atlas.brain, atlas.grid, grid, np.linalg.inv(motion))
    data = 1000 * moved_head(atlas, motion, grid) * brain
    nib.save(nib.Nifti1Image(data, grid.affine), folder / "s_T1w.nii")
    nib.save(nib.Nifti1Image(np.sqrt(data), grid.affine), folder / "s_FLAIR.nii")
    return Scan("s", folder / "s_T1w.nii", "s", sequences={"flair": folder / "s_FLAIR.nii"})


@pytest.fixture(scope="module")
def first(scan):
    return prepare.strip(scan, RECIPE)


@pytest.fixture(scope="module")
def prepared(first):
    return prepare.lay_on_atlas(first, RECIPE)


def test_stripping_keeps_the_scan_and_finds_its_brain(scan, first):
    native = read_image(scan.image)
    assert first.source is first.native and first.native.shape == native.shape
    assert first.method == "none"
    np.testing.assert_allclose(Grid.of(first.work).spacing, 1, atol=1e-4)
    there = carry_mask(first.brain, Grid.of(first.work), Grid.of(native))
    # linear interpolation widens the brain by a part of a voxel
    assert dice(there, np.asarray(native.dataobj) > 0) > 0.95


def test_the_brain_on_the_atlas_comes_back_to_the_scan(scan, prepared):
    native = read_image(scan.image)
    assert prepared.home.shape == native.shape and prepared.space == "MNI152NLin2009aSym"
    np.testing.assert_array_equal(prepared.home.affine, native.affine)
    assert prepared.header["pixdim"][1] == pytest.approx(1.9)
    assert prepared.image.shape == prepared.brain.shape == prepared.grid.shape == (240, 240, 189)
    assert not prepared.image[~prepared.brain].any() and prepared.image.max() <= 1
    assert dice(prepared.brain, prepared.outline) > 0.95

    atlas_from_scan = np.linalg.inv(prepared.scan_from_atlas)
    back = carry_mask(prepared.brain, prepared.grid, prepared.home, atlas_from_scan)
    assert dice(back, np.asarray(native.dataobj) > 0) > 0.95


def test_a_sequence_on_the_same_grid_follows_as_a_channel(scan, first, prepared):
    intensity = Intensity(kind="percentiles", low=1, high=95)
    recipe = RECIPE.model_copy(
        update={"sequences": (Series(modality="flair", intensity=intensity),)}
    )
    series = recipe.sequences[0]
    both = prepare.add_sequence(prepared, first, series, scan.sequences["flair"], recipe)
    assert both.image.shape == (240, 240, 189, 2) and len(both.channels) == 2
    np.testing.assert_array_equal(both.channels[0], prepared.image)
    np.testing.assert_array_equal(both.further_from_atlas[0], prepared.scan_from_atlas)
    names = [c.name for c in both.checks]
    assert names[: len(prepared.checks)] == [c.name for c in prepared.checks]
    assert all(name.startswith("flair: ") for name in names[len(prepared.checks) :])

    whole = prepare.prepare(scan, recipe)
    np.testing.assert_array_equal(whole.image, both.image)
    assert whole.checks == both.checks


def test_a_refused_scan_carries_its_checks_and_a_picture(scan):
    small = RECIPE.model_copy(update={"limits": Limits(brain_ml=(10, 20))})
    with pytest.raises(prepare.RefusedScan, match=r"s_T1w\.nii: brain volume is") as refused:
        prepare.prepare(scan, small)
    assert not all(c.passed for c in refused.value.checks)
    image, brain = refused.value.picture
    assert image.shape == brain.shape


def test_a_missing_sequence_is_named(scan, tmp_path):
    intensity = Intensity(kind="percentiles", low=1, high=95)
    recipe = RECIPE.model_copy(update={"sequences": (Series(modality="t2", intensity=intensity),)})
    with pytest.raises(ScanError, match=r"s_T1w\.nii: no t2 sequence of this scan"):
        prepare.channel_files(scan, recipe)
    gone = Scan("s", scan.image, "s", sequences={"t2": tmp_path / "gone.nii"})
    with pytest.raises(ScanError, match=r"gone\.nii: no such file"):
        prepare.channel_files(gone, recipe)


def test_a_picture_lies_in_the_middle_of_its_frame(tmp_path):
    picture = np.zeros((60, 80), np.uint8)
    picture[10:50, 20:70] = 200
    iio.imwrite(tmp_path / "p.png", picture)
    window = Intensity(kind="window", low=0, high=1)
    recipe = Recipe(modality="picture", intensity=window, grid=(100, 90, 1))
    found = prepare.prepare(Scan("p", tmp_path / "p.png", "p"), recipe)
    assert found.image.shape == found.brain.shape == found.grid.shape == (100, 90, 1)
    assert found.home.shape == (80, 60, 1) and found.space == "picture" and found.outline is None
    assert found.brain.sum() == 40 * 50 and found.brain_method == "foreground"
    # whole pixels: (100 - 80) / 2 and (90 - 60) / 2 to each side
    np.testing.assert_array_equal(found.scan_from_atlas[:2, 3], (-10, -15))


@pytest.mark.parametrize(("slope", "intercept"), [(1 / 300, -1.7), (1, -1024.3), (1, None)])
def test_a_linear_change_of_grey_leaves_brain_and_image(
    scan, first, prepared, tmp_path, monkeypatch, slope, intercept
):
    """Z-scored, a negative background, or one of NaN: the brain is the same to the voxel."""
    native = nib.load(scan.image)
    data = np.asarray(native.dataobj, np.float32)
    changed = np.where(data == 0, np.nan, data)
    if intercept is not None:
        changed = data * np.float32(slope) + np.float32(intercept)
    path = tmp_path / "changed.nii"
    nib.save(nib.Nifti1Image(changed.astype(np.float32), native.affine), path)
    other = prepare.strip(Scan("s", path, "s"), RECIPE)
    assert other.method == "none"
    np.testing.assert_array_equal(other.brain, first.brain)
    assert bool(quality.flags(other.checks)) == (intercept is None)

    # the fit itself is steady to a few tenths of a mm, not to the bit: the same pose for both
    pose = prepared.scan_from_atlas
    monkeypatch.setattr(register, "fit", lambda *_, **__: (pose, pose))
    recipe = RECIPE.model_copy(update={"limits": Limits(min_overlap=0.5, min_information=0)})
    if intercept is not None:
        laid = prepare.lay_on_atlas(other, recipe)
        np.testing.assert_array_equal(laid.brain, prepared.brain)
        np.testing.assert_allclose(laid.image, prepared.image, atol=1e-3)
