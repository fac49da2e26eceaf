"""Space: known displacements come back, maps return to the scan's own grid, matrices mean what they say."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocessing import register
from preprocessing.images import Grid
from preprocessing.scans import InputError

OBLIQUE = Rotation.from_euler("xyz", [10, -7, 12], degrees=True).as_matrix()


def rigid_motion(degrees, shift, about):
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    motion[:3, 3] = about - motion[:3, :3] @ about + shift
    return motion


def brain_points(atlas):
    inside = np.argwhere(atlas.brain)[::997]
    return inside @ atlas.affine[:3, :3].T + atlas.affine[:3, 3]


def apply(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def displaced_head(atlas, motion, voxel, axes, shape):
    """The atlas brain moved by `motion`, seen on an oblique, flipped, anisotropic grid: data, grid."""
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag(axes) @ np.diag(voxel)
    middle = apply(motion, register.centre(atlas.brain, atlas.affine)[None])[0]
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) / 2)
    grid = Grid(shape, affine)
    return register.resample(atlas.image, atlas.grid, grid, np.linalg.inv(motion)), grid


@pytest.mark.parametrize(
    "axes, voxel, shape",
    [
        ((-1, -1, 1), (1.2, 1.5, 3.0), (170, 160, 72)),
        ((1, -1, -1), (2.0, 1.1, 1.6), (100, 210, 130)),
    ],
)
def test_a_head_moved_by_10_degrees_and_8_mm_comes_back_within_1_mm(axes, voxel, shape):
    atlas = register.load_atlas()
    about = register.centre(atlas.brain, atlas.affine)
    shift = np.array([5.0, -5.0, 3.75])  # 8.0 mm long
    assert np.linalg.norm(shift) == pytest.approx(8.0, abs=0.01)
    motion = rigid_motion([10 / np.sqrt(3)] * 3, shift, about)
    assert np.degrees(Rotation.from_matrix(motion[:3, :3]).magnitude()) > 9.5
    data, grid = displaced_head(atlas, motion, voxel, axes, shape)
    world, _ = register.fit(data, grid, atlas)
    points = brain_points(atlas)
    error = np.linalg.norm(apply(world, points) - apply(motion, points), axis=1)
    assert error.mean() <= 1.0
    assert (
        np.linalg.norm(apply(motion, points) - points, axis=1).mean() > 8
    )  # what an identity would have scored


def test_a_map_carried_to_the_atlas_and_back_keeps_its_grid_and_a_5_ml_blob():
    atlas = register.load_atlas()
    motion = rigid_motion(
        [6, -4, 5], np.array([4.0, -6, 3]), register.centre(atlas.brain, atlas.affine)
    )
    shape, affine = (150, 120, 90), np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([-1.2, 1.6, 2.0])
    affine[:3, 3] = apply(motion, register.centre(atlas.brain, atlas.affine)[None])[0] - affine[
        :3, :3
    ] @ (np.array(shape) / 2)
    points = (
        np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T
        + affine[:3, 3]
    )
    place = apply(motion, register.centre(atlas.brain, atlas.affine)[None])[0] + [20, 15, -10]
    radius = (5000 * 3 / (4 * np.pi)) ** (1 / 3)  # of 5 ml
    blob = np.linalg.norm(points - place, axis=-1) <= radius
    assert blob.sum() * abs(np.linalg.det(affine[:3, :3])) == pytest.approx(5000, rel=0.03)
    grid = Grid(shape, affine)
    there = register.carry_mask(blob, grid, atlas.grid, motion)
    back = register.carry_mask(there, atlas.grid, grid, np.linalg.inv(motion))
    assert back.shape == shape
    assert 2 * (back & blob).sum() / (back.sum() + blob.sum()) >= 0.9
    soft = (
        register.resample(there.astype(np.float32), atlas.grid, grid, np.linalg.inv(motion)) > 0.5
    )
    assert 2 * (soft & blob).sum() / (soft.sum() + blob.sum()) >= 0.9


def test_registration_repeats_exactly():
    atlas = register.load_atlas(shape=(160, 200, 160))
    motion = rigid_motion(
        [3, -2, 4], np.array([2.0, 3, -4]), register.centre(atlas.brain, atlas.affine)
    )
    data, grid = displaced_head(atlas, motion, (2, 2, 3), (-1, -1, 1), (90, 110, 70))
    one, two = (register.fit(data, grid, atlas, spacing=5) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    assert not np.array_equal(
        register.fit(data, grid, atlas, spacing=5, seed=9)[0], one[0]
    )  # the seed is heard


def test_nearest_rigid_is_the_polar_rotation_and_keeps_the_fixed_point():
    from scipy.linalg import polar

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
    import ants

    atlas = register.load_atlas()
    motion = rigid_motion([4, 5, -6], np.array([3.0, 2, -1]), np.zeros(3))
    register.write_matrix(tmp_path / "xfm.mat", motion)
    point = np.array([12.0, -30, 25])
    lps = np.array([-1, -1, 1])
    found = (
        np.array(
            ants.apply_ants_transform_to_point(
                ants.read_transform(str(tmp_path / "xfm.mat")), tuple(point * lps)
            )
        )
        * lps
    )
    np.testing.assert_allclose(found, apply(motion, point[None])[0], atol=1e-4)
    small = atlas.image[::4, ::4, ::4]
    affine = atlas.affine @ np.diag([4, 4, 4, 1])
    by_ants = ants.apply_transforms(
        register.to_ants(small, affine),
        register.to_ants(small, affine),
        [str(tmp_path / "xfm.mat")],
    )
    grid = Grid(small.shape, affine)
    ours = register.resample(small, grid, grid, motion)
    inner = (slice(2, -2),) * 3  # ITK reaches half a voxel further at the border
    assert np.abs(by_ants.numpy() - ours)[inner].max() < 1e-3
    assert np.abs(small - ours).max() > 0.1
    assert not list(tmp_path.glob(".tmp*"))


def test_resample_is_trilinear_and_pads():
    from scipy.interpolate import RegularGridInterpolator

    rng = np.random.default_rng(1)
    data = rng.normal(size=(7, 9, 11))
    affine, target = np.diag([2.0, 3, 1.5, 1]), np.diag([1.0, 1.0, 1.0, 1])
    target[:3, 3] = [1.3, 2.1, 0.4]
    grid = Grid(data.shape, affine)
    found = register.resample(data, grid, Grid((8, 10, 9), target), pad=-1024)
    points = np.stack(np.meshgrid(*map(np.arange, (8, 10, 9)), indexing="ij"), -1) + target[:3, 3]
    want = RegularGridInterpolator(
        [np.arange(n) * s for n, s in zip(data.shape, (2, 3, 1.5), strict=True)], data
    )(points)
    np.testing.assert_allclose(found, want, atol=1e-9)
    target[:3, 3] = [500, 0, 0]
    away = Grid((2, 2, 2), target)
    assert (register.resample(data, grid, away, pad=-1024) == -1024).all()
    nearest = register.resample(data, grid, away, pad=None)
    assert nearest[0, 0, 0] == pytest.approx(data[-1, 0, 0])


def test_to_1_mm_is_linear_and_keeps_the_world():
    ramp = np.fromfunction(lambda i, j, k: 2.0 * i - 3 * j + 5 * k, (20, 24, 12)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([1.5, 0.8, 3.0])
    affine[:3, 3] = [-5, 7, 11]
    new = register.to_spacing(nib.Nifti1Image(ramp, affine), 1.0)
    np.testing.assert_allclose(nib.affines.voxel_sizes(new.affine), 1, atol=1e-5)
    voxel = np.array([10, 8, 15])
    i, j, k = apply(np.linalg.inv(affine), apply(new.affine, voxel[None]))[0]
    assert new.dataobj[tuple(voxel)] == pytest.approx(
        2 * i - 3 * j + 5 * k, abs=1e-2
    )  # a nearest neighbour would step


def test_a_sheared_affine_is_straightened_without_moving_anything():
    data = np.zeros((30, 34, 20), np.float32)
    data[14:18, 15:20, 9:12] = 100
    sheared = np.diag([1.0, 1, 3, 1])
    sheared[1, 2] = 0.9  # gantry tilt: each slice is moved along y
    new = register.to_spacing(nib.Nifti1Image(data, sheared), 1.0, pad=-1024)
    axes = new.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    inside = np.asarray(new.dataobj)
    centre = np.argwhere(inside > 50).mean(0) @ axes.T + new.affine[:3, 3]
    np.testing.assert_allclose(
        centre, apply(sheared, np.argwhere(data > 50).mean(0)[None])[0], atol=0.6
    )
    assert inside.min() == -1024


def test_the_atlas_is_240_wide_padded_evenly_and_in_its_own_world():
    from nilearn.datasets import load_mni152_template

    atlas, template = register.load_atlas(), load_mni152_template(resolution=1)
    assert atlas.grid.shape == (240, 240, 189)
    world = np.array([10.0, -20, 30])
    there = tuple(np.round(apply(np.linalg.inv(atlas.affine), world[None])[0]).astype(int))
    here = tuple(np.round(apply(np.linalg.inv(template.affine), world[None])[0]).astype(int))
    assert atlas.image[there] == pytest.approx(template.get_fdata()[here], abs=1e-6)
    assert not atlas.image[~atlas.brain].any()
    assert register.load_atlas(shape=(200, 220, 180)).grid.shape == (200, 220, 180)


def test_a_template_of_ones_own(tmp_path):
    data = np.zeros((40, 50, 45), np.int16)
    data[8:30, 10:40, 9:36] = 70
    nib.save(nib.Nifti1Image(data, np.diag([-2.0, 2, 2, 1])), tmp_path / "my_atlas.nii.gz")
    atlas = register.load_atlas(str(tmp_path / "my_atlas.nii.gz"), (None, None, None))
    assert atlas.name == "myatlas" and nib.aff2axcodes(atlas.affine) == ("R", "A", "S")
    assert atlas.brain.sum() == pytest.approx(22 * 30 * 27 * 8, rel=0.1)
    with pytest.raises(InputError, match=r"TEMPLATE.*no such file"):
        register.load_atlas(str(Path(tmp_path) / "absent.nii.gz"))


def test_resampling_in_a_box_is_scipy_s_of_the_whole():
    """Sheared grids, padding of any value, data that fill a part of theirs or none: what lies outside the box is padding."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    for trial in range(25):
        shape, wanted = tuple(rng.integers(8, 24, 3)), tuple(rng.integers(8, 30, 3))
        pad = float(rng.choice([0, -1024]))
        data = np.full(shape, pad, np.float32)
        low = [rng.integers(0, n // 2) for n in shape]
        inside = tuple(slice(a, rng.integers(a + 1, n)) for a, n in zip(low, shape, strict=True))
        if trial:  # the first holds nothing
            data[inside] = 1 + rng.random(data[inside].shape)
        affine = np.eye(4)
        affine[:3] = rng.normal(size=(3, 4)) * (1, 1, 1, 3)
        target = affine @ np.diag([0.7, 0.8, 0.9, 1])
        target[:3, 3] += 2 * rng.normal(size=3)
        grid = Grid(shape, affine)
        onto = Grid(wanted, target)
        matrix = np.linalg.inv(affine) @ target
        whole = {"matrix": matrix[:3, :3], "offset": matrix[:3, 3], "output_shape": wanted}
        for order in (0, 1):
            expected = ndimage.affine_transform(
                data, order=order, mode="constant", cval=pad, **whole
            )
            np.testing.assert_allclose(
                register.resample(data, grid, onto, order=order, pad=pad),
                expected,
                atol=1e-3,
            )
        within = np.zeros(wanted, bool)
        within[2:5, 3:4, 1:7] = True
        expected = ndimage.affine_transform(data, order=1, mode="nearest", **whole)
        got = register.resample(data, grid, onto, pad=None, within=within)
        np.testing.assert_allclose(got[within], expected[within], atol=1e-3)
        assert not got[6:].any() and not got[:, :, 8:].any()


def test_a_head_that_lies_askew_is_found_from_other_poses(monkeypatch):
    """38 degrees in the plane: from the centres of mass alone the fit ends elsewhere, from the turned starts it comes home."""
    atlas = register.load_atlas()
    coarse = atlas.affine @ np.diag([4, 4, 4, 1])
    image = register.resample(atlas.image, atlas.grid, Grid((60, 60, 47), coarse))
    image[:, :, :9] = 0  # the field of view ends in the cerebellum
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", 38, degrees=True).as_matrix()
    pose[:3, 3] = [10, -5, 8]

    def apart():
        world, _ = register.fit(image, Grid(image.shape, pose @ coarse), atlas, spacing=4.0)
        return np.degrees(
            (
                Rotation.from_matrix(world[:3, :3]) * Rotation.from_matrix(pose[:3, :3]).inv()
            ).magnitude()
        )

    assert apart() < 1
    monkeypatch.setattr(register, "SURE", 0.0)
    assert apart() > 10
