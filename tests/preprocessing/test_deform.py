"""align=deformable: a known deformation is found, bounded, and led back from."""

from types import SimpleNamespace

import ants
import nibabel as nib
import numpy as np
import pytest

from pipelines.cohort import cases
from preprocessing import deform, register
from preprocessing.images import Grid
from preprocessing.quality import deformation_checks, dice
from preprocessing.recipe import Intensity, Recipe
from preprocessing.resample import carry_mask, resample
from preprocessing.warp import (
    Field,
    Warp,
    carry,
    inverse,
    linear,
    read_field,
    volume_change,
    write_field,
)


def bump(grid, middle, most, sigma):
    """A field that moves what lies about a point by up to `most` mm."""
    mm = nib.affines.apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1))
    weight = np.exp(-((mm - middle) ** 2).sum(-1) / (2 * sigma**2))
    return (weight[..., None] * np.array(most)).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    """A field on a grid whose axes differ in length, spacing and direction."""
    grid = Grid((24, 20, 22), np.diag([-4.0, 5.0, 4.5, 1.0]))
    middle = nib.affines.apply_affine(grid.affine, [12, 10, 11])
    return Field(bump(grid, middle, [5.0, -4, 3], 14), grid)


@pytest.fixture(scope="module")
def found():
    """A head made of the atlas by a known deformation, with a bleed, and the fit of it."""
    atlas = register.load_atlas(shape=(160, 200, 160))
    window = deform._window(atlas, 4)
    middle = register.centre(atlas.brain, atlas.affine)
    mm = bump(window, middle + np.array([30, 30, 10]), [7.0, -6, 5], 26)
    mm += bump(window, middle + np.array([-30, -40, 0]), [-6.0, 7, 6], 28)
    true = Warp((np.eye(4), Field(mm, window)))
    grid = atlas.grid.every(2)
    scan = resample(atlas.image, atlas.grid, grid, inverse(true))
    brain = carry_mask(atlas.brain, atlas.grid, grid, inverse(true))

    away = np.moveaxis(np.indices(grid.shape), 0, -1) * 2 - np.argwhere(atlas.brain).mean(0)
    bleed = np.linalg.norm(away - [28, 5, 20], axis=-1) < 13  # 9 ml
    scan = np.where(bleed, 1.3 * scan.max(), scan)
    warp = deform.fit_deformation(scan, grid, brain, atlas, np.eye(4))
    return SimpleNamespace(
        atlas=atlas, grid=grid, scan=scan, brain=brain, bleed=bleed, true=true, warp=warp
    )


@pytest.mark.slow
def test_a_known_deformation_is_found(found):
    points = nib.affines.apply_affine(found.atlas.affine, np.argwhere(found.atlas.brain)[::997])
    true = carry(found.true, points)
    before = np.linalg.norm(points - true, axis=1).mean()
    after = np.linalg.norm(carry(found.warp, points) - true, axis=1).mean()
    assert after < 2 and after < 0.6 * before  # mm; a voxel of the scan is 2 mm

    there = carry_mask(found.brain, found.grid, found.atlas.grid, found.warp)
    affine = carry_mask(found.brain, found.grid, found.atlas.grid)
    assert dice(there, found.atlas.brain) > dice(affine, found.atlas.brain)

    # white matter lies on white matter
    level = np.median(found.atlas.image[found.atlas.brain]) * 1.15
    white = found.atlas.image > level
    there = resample(found.scan, found.grid, found.atlas.grid, found.warp) > level
    affine = resample(found.scan, found.grid, found.atlas.grid) > level
    assert dice(there, white) > dice(affine, white) + 0.02


@pytest.mark.slow
def test_a_found_deformation_leads_back_and_is_bounded(found):
    points = nib.affines.apply_affine(found.atlas.affine, np.argwhere(found.atlas.brain)[::997])
    home = carry(inverse(found.warp), carry(found.warp, points))
    assert np.linalg.norm(home - points, axis=1).max() < 1
    change = found.warp.fields[0].jacobian()
    assert 1 / 1.5 <= change.min() < 1 < change.max() <= 1.5
    checks = deformation_checks(0.97, 0.95, found.warp)
    assert all(c.passed for c in checks) and not any(c.hard for c in checks)


@pytest.mark.slow
def test_a_bleed_is_not_warped_away(found):
    ball = found.bleed.astype(np.float32)
    there = resample(ball, found.grid, found.atlas.grid, found.warp)
    back = resample(there, found.atlas.grid, found.grid, inverse(found.warp))
    ml = 8 * ball.sum() / 1000
    assert 8 * (back > 0.5).sum() / 1000 == pytest.approx(ml, rel=0.03)
    assert 1 / 1.5 < (there > 0.5).sum() / 1000 / ml < 1.5


def test_a_field_too_steep_is_smoothed_and_a_gentle_one_kept(small):
    steep = Field(4 * small.mm, small.grid)
    assert steep.jacobian().max() > 1.5
    change = deform.bounded(steep).jacobian()
    assert change.max() <= 1.5 and change.min() >= 1 / 1.5
    gentle = Field(0.5 * small.mm, small.grid)
    inner = (slice(4, -4),) * 3
    np.testing.assert_array_equal(deform.bounded(gentle).mm[inner], gentle.mm[inner])


def test_the_jacobian_is_that_of_a_stretch():
    grid = Grid((6, 7, 8), np.diag([-2.0, 3.0, 4.0, 1.0]))
    mm = nib.affines.apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1))
    stretch = np.array([[0.1, 0.02, 0], [0, -0.2, 0.03], [0.01, 0, 0.05]])
    field = Field(mm @ stretch.T, grid)
    np.testing.assert_allclose(field.jacobian(), np.linalg.det(np.eye(3) + stretch), rtol=1e-6)
    scale = np.diag([2.0, 1, 1, 1])
    change = volume_change(scale @ Warp((np.eye(4), field)), np.ones(grid.shape, bool), grid)
    assert change == pytest.approx(2 * np.linalg.det(np.eye(3) + stretch), rel=1e-6)
    assert volume_change(scale, np.ones(grid.shape, bool), grid) == 2


def test_a_warp_composes_as_matrices_do(small):
    turn = np.eye(4)
    turn[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1.1]]
    turn[:3, 3] = [3, -2, 5]
    points = nib.affines.apply_affine(small.grid.affine, np.array([[9.0, 8, 12], [13, 10, 9]]))
    warp = turn @ Warp((np.eye(4), small)) @ np.linalg.inv(turn)
    by_hand = nib.affines.apply_affine(np.linalg.inv(turn), points)
    by_hand = nib.affines.apply_affine(turn, by_hand + small.at(by_hand))
    np.testing.assert_allclose(carry(warp, points), by_hand, atol=1e-5)
    assert len(warp.steps) == 3 and len(warp.fields) == 1
    np.testing.assert_allclose(linear(warp), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(carry(inverse(warp) @ warp, points), points, atol=0.2)
    assert inverse(inverse(warp)).fields[0] is small


def test_no_displacement_is_the_affine_and_ants_reads_the_file(small, tmp_path):
    rng = np.random.default_rng(0)
    data = rng.random((18, 16, 20)).astype(np.float32)
    grid = Grid((18, 16, 20), small.grid.affine)
    onto = Grid((15, 14, 16), small.grid.affine @ np.diag([1.2, 1.1, 1.15, 1]))
    none = Field(np.zeros_like(small.mm), small.grid)
    for order in (0, 1):
        plain = resample(data, grid, onto, np.eye(4), order=order)
        warped = resample(data, grid, onto, Warp((np.eye(4), none)), order=order)
        np.testing.assert_allclose(warped, plain, atol=1e-5)

    write_field(tmp_path / "w.nii.gz", small)
    np.testing.assert_array_equal(read_field(tmp_path / "w.nii.gz").mm, small.mm)
    moving = register.to_ants(data, grid.affine)
    fixed = register.to_ants(np.zeros(onto.shape), onto.affine)
    theirs = ants.apply_transforms(fixed, moving, [str(tmp_path / "w.nii.gz")]).numpy()
    ours = resample(data, grid, onto, Warp((np.eye(4), small)))
    inner = (slice(2, 12),) * 3
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-4)


def test_a_picture_cannot_be_deformed():
    window = Intensity(kind="window", low=0, high=1)
    with pytest.raises(ValueError, match="align=deformable is for scans"):
        Recipe(modality="picture", intensity=window, align="deformable")


def test_a_case_is_read_with_its_deformation(small, tmp_path):
    (tmp_path / "s").mkdir()
    write_field(tmp_path / "s" / "w.nii.gz", small)
    brain = tmp_path / "s" / "brain.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), brain)
    world = np.diag([2.0, 1, 1, 1])
    said = {"native_shape": [4, 5, 6], "native_affine": np.eye(4), "world": world}
    said |= {"warp": "s/w.nii.gz", "brain_method": "none"}
    case = SimpleNamespace(
        brain=brain, sidecar=tmp_path / "s" / "s.json", read_sidecar=lambda: said
    )
    way = cases.load(case, image=False).scan_from_atlas
    np.testing.assert_array_equal(way.fields[0].mm, small.mm)
    np.testing.assert_array_equal(linear(way), world)
