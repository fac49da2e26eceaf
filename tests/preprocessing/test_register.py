"""Registration: known displacements come back, and matrices mean what they say."""

import ants
import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from preprocessing import register
from preprocessing.images import Grid
from preprocessing.resample import resample
from preprocessing.scans import InputError
from tests.preprocessing.spaces import (
    OBLIQUE,
    apply,
    atlas_centre,
    moved_grid,
    moved_head,
    rigid_motion,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "axes, voxel, shape",
    [
        ((-1, -1, 1), (1.2, 1.5, 3.0), (170, 160, 72)),
        ((1, -1, -1), (2.0, 1.1, 1.6), (100, 210, 130)),
    ],
)
def test_a_head_moved_by_10_degrees_and_8_mm_comes_back_within_1_mm(axes, voxel, shape):
    atlas = register.load_atlas()
    shift = np.array([5.0, -5.0, 3.75])
    assert np.linalg.norm(shift) == pytest.approx(8.0, abs=0.01)
    motion = rigid_motion([10 / np.sqrt(3)] * 3, shift, atlas_centre(atlas))
    assert np.degrees(Rotation.from_matrix(motion[:3, :3]).magnitude()) > 9.5

    grid = moved_grid(atlas, motion, voxel, axes, shape)
    scan_from_atlas, _ = register.fit(moved_head(atlas, motion, grid), grid, atlas)
    points = apply(atlas.affine, np.argwhere(atlas.brain)[::997])
    true = apply(motion, points)
    assert np.linalg.norm(apply(scan_from_atlas, points) - true, axis=1).mean() <= 1.0
    # what an identity would have scored
    assert np.linalg.norm(points - true, axis=1).mean() > 8


def test_registration_repeats_exactly():
    atlas = register.load_atlas(shape=(160, 200, 160))
    motion = rigid_motion([3, -2, 4], np.array([2.0, 3, -4]), atlas_centre(atlas))
    grid = moved_grid(atlas, motion, (2, 2, 3), (-1, -1, 1), (90, 110, 70))
    data = moved_head(atlas, motion, grid)
    one, two = (register.fit(data, grid, atlas, spacing=5)[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    # the seed has a say
    assert not np.array_equal(register.fit(data, grid, atlas, spacing=5, seed=9)[0], one)


def test_nearest_rigid_is_the_polar_rotation_and_keeps_the_fixed_point():
    rng = np.random.default_rng(0)
    matrix = np.eye(4)
    matrix[:3, :3] = OBLIQUE @ np.diag([1.1, 0.9, 1.2]) + rng.normal(0, 0.02, (3, 3))
    matrix[:3, 3] = [3, -4, 5]
    point = np.array([10.0, 20, 30])
    found = register.nearest_rigid(matrix, point)
    np.testing.assert_allclose(found[:3, :3], polar(matrix[:3, :3])[0], atol=1e-12)
    np.testing.assert_allclose(apply(found, point[None]), apply(matrix, point[None]), atol=1e-9)
    assert np.linalg.det(found[:3, :3]) == pytest.approx(1)


def test_nearest_rigid_never_mirrors():
    mirrored = np.diag([-1.0, 1, 1, 1])
    assert np.linalg.det(register.nearest_rigid(mirrored, np.zeros(3))[:3, :3]) == pytest.approx(1)


def test_the_written_transform_is_what_ants_applies(tmp_path):
    atlas = register.load_atlas()
    file = tmp_path / "xfm.mat"
    motion = rigid_motion([4, 5, -6], np.array([3.0, 2, -1]), np.zeros(3))
    register.write_matrix(file, motion)
    assert not list(tmp_path.glob(".tmp*"))

    point = np.array([12.0, -30, 25])
    lps = np.array([-1, -1, 1])
    carried = ants.apply_ants_transform_to_point(ants.read_transform(str(file)), tuple(point * lps))
    np.testing.assert_allclose(np.array(carried) * lps, apply(motion, point[None])[0], atol=1e-4)

    small = atlas.image[::4, ::4, ::4]
    grid = atlas.grid.every(4)
    image = register.to_ants(small, grid.affine)
    by_ants = ants.apply_transforms(image, image, [str(file)]).numpy()
    ours = resample(small, grid, grid, motion)
    inner = (slice(2, -2),) * 3  # ITK reaches half a voxel further at the border
    assert np.abs(by_ants - ours)[inner].max() < 1e-3
    assert np.abs(small - ours).max() > 0.1


def test_to_1_mm_is_linear_and_keeps_its_place():
    ramp = np.fromfunction(lambda i, j, k: 2.0 * i - 3 * j + 5 * k, (20, 24, 12)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([1.5, 0.8, 3.0])
    affine[:3, 3] = [-5, 7, 11]
    new = register.to_spacing(nib.Nifti1Image(ramp, affine), 1.0)
    np.testing.assert_allclose(nib.affines.voxel_sizes(new.affine), 1, atol=1e-5)
    voxel = np.array([10, 8, 15])
    i, j, k = apply(np.linalg.inv(affine), apply(new.affine, voxel[None]))[0]
    # a nearest neighbour would step
    assert new.dataobj[tuple(voxel)] == pytest.approx(2 * i - 3 * j + 5 * k, abs=1e-2)


@pytest.mark.parametrize("nearest", [False, True])
def test_resampling_is_that_of_ants_to_the_bit(nearest):
    rng = np.random.default_rng(0)
    for spacing in (1.0, 3.0, 7.3):
        affine = np.eye(4)
        turn = Rotation.random(random_state=rng).as_matrix()
        affine[:3, :3] = turn * rng.uniform(0.4, 6, 3)
        affine[:3, 3] = rng.uniform(-90, 90, 3)
        data = rng.normal(0, 100, rng.integers(8, 40, 3)).astype(np.float32)
        new = register._coarse(data, affine, spacing, nearest)
        of_ants = ants.resample_image(
            register.to_ants(data, affine), (spacing,) * 3, False, int(nearest)
        )
        np.testing.assert_array_equal(new.numpy(), of_ants.numpy())
        np.testing.assert_array_equal(new.direction, of_ants.direction)
        assert (new.spacing, new.origin) == (of_ants.spacing, of_ants.origin)


def test_a_sheared_affine_is_straightened_without_moving_anything():
    data = np.zeros((30, 34, 20), np.float32)
    data[14:18, 15:20, 9:12] = 100
    sheared = np.diag([1.0, 1, 3, 1])
    sheared[1, 2] = 0.9  # gantry tilt: each slice is moved along y
    new = register.to_spacing(nib.Nifti1Image(data, sheared), 1.0, pad=-1024)
    axes = new.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    straight = np.asarray(new.dataobj)
    found = register.centre(straight > 50, new.affine)
    np.testing.assert_allclose(found, register.centre(data > 50, sheared), atol=0.6)
    assert straight.min() == -1024


def test_the_atlas_is_240_wide_padded_evenly_and_in_its_own_place():
    atlas = register.load_atlas()
    template = load_mni152_template(resolution=1)
    assert atlas.grid.shape == (240, 240, 189)
    point = np.array([[10.0, -20, 30]])
    in_atlas = tuple(np.round(apply(np.linalg.inv(atlas.affine), point)[0]).astype(int))
    in_template = tuple(np.round(apply(np.linalg.inv(template.affine), point)[0]).astype(int))
    assert atlas.image[in_atlas] == pytest.approx(template.get_fdata()[in_template], abs=1e-6)
    assert not atlas.image[~atlas.brain].any()
    assert register.load_atlas(shape=(200, 220, 180)).grid.shape == (200, 220, 180)


def test_the_atlas_is_nilearns_to_the_bit():
    template = load_mni152_template(resolution=1)
    atlas = register.load_atlas(shape=(None, None, None))
    brain = np.asarray(load_mni152_brain_mask(resolution=1).dataobj) > 0
    assert np.array_equal(atlas.affine, template.affine)
    assert np.array_equal(atlas.brain, brain)
    assert np.array_equal(atlas.image, np.asarray(template.dataobj) * brain)


def test_a_template_of_ones_own(tmp_path):
    data = np.zeros((40, 50, 45), np.int16)
    data[8:30, 10:40, 9:36] = 70
    nib.save(nib.Nifti1Image(data, np.diag([-2.0, 2, 2, 1])), tmp_path / "my_atlas.nii.gz")
    atlas = register.load_atlas(str(tmp_path / "my_atlas.nii.gz"), (None, None, None))
    assert atlas.name == "myatlas" and nib.aff2axcodes(atlas.affine) == ("R", "A", "S")
    assert atlas.brain.sum() == pytest.approx(22 * 30 * 27 * 8, rel=0.1)
    with pytest.raises(InputError, match=r"TEMPLATE.*no such file"):
        register.load_atlas(str(tmp_path / "absent.nii.gz"))


def test_a_head_that_lies_askew_is_found_from_other_poses(monkeypatch):
    """A head turned by 38 degrees: from the centres of mass alone the fit ends elsewhere."""
    atlas = register.load_atlas()
    coarse = atlas.grid.every(4)
    image = resample(atlas.image, atlas.grid, Grid((60, 60, 47), coarse.affine))
    image[:, :, :9] = 0  # the field of view ends in the cerebellum
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", 38, degrees=True).as_matrix()
    pose[:3, 3] = [10, -5, 8]
    grid = Grid(image.shape, pose @ coarse.affine)

    def degrees_apart():
        found, _ = register.fit(image, grid, atlas, spacing=4.0)
        between = Rotation.from_matrix(found[:3, :3] @ pose[:3, :3].T)
        return np.degrees(between.magnitude())

    assert degrees_apart() < 1
    monkeypatch.setattr(register, "SURE", 0.0)
    assert degrees_apart() > 10
