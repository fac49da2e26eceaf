"""Synthetic lesions of every kind: what changes, by how much, and what does not."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from evaluation import synthetic
from evaluation.shapes import random_shape
from evaluation.synthetic import KINDS, hemisphere, match_intensities, mirrored, plant
from tests.evaluation.volumes import SHAPE, SPACING, ball, brain_and_image, rng


class Lowest:
    """A generator whose draws are the lowest possible: strengths that a test knows."""

    def uniform(self, low, high):
        return low

    def random(self):
        return 0.0


@pytest.fixture(scope="module")
def scan():
    brain, image = brain_and_image()
    shape = ball(SHAPE, SPACING, (26, 20, 15), 8.0)
    donor = match_intensities(*brain_and_image(1)[::-1], image, brain)
    return image, brain, shape, donor


def planted(kind, scan, source=None):
    image, brain, shape, donor = scan
    return plant(source or rng(4), kind, image, brain, shape, SPACING, donor)


def test_hemisphere_is_one_side_of_the_brain():
    brain = np.zeros((11, 9, 8), bool)
    brain[2:6, 3:8, 1:7] = True  # along axis 1 the middle is 5, along axis 0 it is 3.5
    sides = {tuple(np.unique(np.argwhere(hemisphere(rng(s), brain, 1))[:, 1])) for s in range(20)}
    assert sides == {(3, 4), (6, 7)}
    assert {
        tuple(np.unique(np.argwhere(hemisphere(rng(s), brain, 0))[:, 0])) for s in range(20)
    } == {(2, 3), (4, 5)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_the_mask_and_nothing_else(kind, scan):
    image, brain, shape, _ = scan
    before = image.copy()
    new, mask = planted(kind, scan)
    assert new.dtype == np.float32 and (mask == (shape & brain)).all() and (image == before).all()
    assert new[~mask].tobytes() == image[~mask].tobytes()
    low, high = np.percentile(image[brain], (5, 95))
    assert np.abs(new - image)[mask].mean() > 0.05 * (high - low)
    assert (new != image)[mask].mean() > 0.9
    again, _ = planted(kind, scan)
    other, _ = planted(kind, scan, rng(5))
    assert again.tobytes() == new.tobytes() and (other != new).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_across_the_surface_stays_in_the_brain(kind, scan):
    image, brain, _, donor = scan
    shape = ball(SHAPE, SPACING, np.argwhere(brain)[0], 9.0)
    new, mask = plant(rng(), kind, image, brain, shape, SPACING, donor)
    assert (
        0 < mask.sum() < shape.sum()
        and not (mask & ~brain).any()
        and (new[~brain] == image[~brain]).all()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_works_in_one_slice(kind):
    brain = ball((64, 50, 1), (1, 1, 1), (32, 25, 0), 22)
    image = gaussian_filter(rng(1).normal(size=brain.shape), 2).astype(np.float32)
    shape = random_shape(rng(1), brain.shape, (1, 1, 1), (38, 25, 0), 0.15)
    new, mask = plant(rng(1), kind, image, brain, shape, (1, 1, 1), image[::-1])
    assert (new != image)[mask].mean() > 0.8 and (new == image)[~mask].all()


def test_bright_and_dark_shift_by_a_share_of_the_range_with_a_soft_edge(scan):
    image, brain, _, _ = scan
    low, high = np.percentile(image[brain], (5, 95))
    bright, mask = planted("bright", scan, Lowest())
    dark, _ = planted("dark", scan, Lowest())
    assert bright[mask].mean() > image[mask].mean() + 0.2 * (high - low)
    assert dark[mask].mean() < image[mask].mean() - 0.1 * (high - low)
    core = ball(SHAPE, SPACING, (26, 20, 15), 5.0)
    np.testing.assert_allclose((bright - image)[core], 0.3 * (high - low), rtol=1e-3)
    rim = (bright - image)[26 + 8, 20, 15] / (0.3 * (high - low))
    assert rim == pytest.approx(0.5, abs=0.01)  # 1 mm deep, half a voxel in, over an edge of 1 mm


def test_dark_never_falls_below_fluid(scan):
    image, brain, _, _ = scan
    floor = np.percentile(image[brain], 1)
    dark, mask = planted("dark", scan, rng(3))
    assert (dark[mask] >= np.minimum(image[mask], floor) - 1e-3).all() and (
        dark[mask] < floor + 1e-3
    ).any()


def test_blend_mixes_by_alpha(scan):
    np.testing.assert_allclose(
        synthetic._mixed(np.array([10.0, 20.0]), np.array([30.0, 0.0]), 0.75), [25.0, 5.0]
    )
    image, _, _, donor = scan
    new, _ = planted("blend", scan, Lowest())  # alpha 0.5
    core = ball(SHAPE, SPACING, (26, 20, 15), 5.0)
    np.testing.assert_allclose(new[core], (image[core] + donor[core]) / 2, rtol=1e-5)


def test_visibility_is_the_mean_change_in_the_mask_as_a_share_of_the_range():
    image = np.linspace(0, 100, 101).reshape(101, 1, 1)  # 5th and 95th percentile are 5 and 95
    new = image.copy()
    mask = image < 2
    new[0] = 27
    new[1] = -17
    assert synthetic.visibility(image, new, image >= 0, mask) == pytest.approx((27 + 18) / 2 / 90)
    assert synthetic.visibility(0 * image, new, image >= 0, mask) == 0


def test_match_gives_mean_and_spread_of_the_brain():
    donor = np.array([[2.0, 4.0, 900.0]])
    image = np.array([[10.0, 30.0, -5.0]])
    both = np.array([[True, True, False]])
    np.testing.assert_allclose(match_intensities(donor, both, image, both)[both], [10, 30])


def test_deform_pushes_from_the_centre():
    at = [np.arange(n) - c for n, c in zip((48, 45, 42), (24, 22, 20), strict=True)]
    away = np.sqrt(sum(a**2 for a in np.meshgrid(*at, indexing="ij"))).astype(np.float32)
    new, mask = plant(Lowest(), "deform", -away, away < 20, away <= 15, (1, 1, 1))  # pushed by 0.6
    expected = away * (1 - 0.6 * (1 - (away / 15.5) ** 2))
    assert np.abs(new + expected)[mask].max() < 1.2 and np.abs(new + expected)[mask].mean() < 0.4
    assert (new + away)[mask & (away > 14.5)].mean() < 0.3 * (new + away)[mask].max()


def test_noise_is_smooth_grain_about_the_same_mean(scan):
    image, brain, _, _ = scan
    low, high = np.percentile(image[brain], (5, 95))
    shape = ball(SHAPE, SPACING, (24, 20, 15), 16.0)
    new, _ = plant(rng(7), "noise", image, brain, shape, SPACING)
    grain = (new - image)[8:40, 12:28, 11:20] / (high - low)
    assert 0.12 < grain.std() < 0.45 and abs(grain.mean()) < 0.1
    assert 0.5 < np.corrcoef(grain[1:].ravel(), grain[:-1].ravel())[0, 1] < 0.97


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirror_takes_the_place_across_the_mid_plane(axis):
    brain = np.zeros(SHAPE, bool)
    brain[5:43, 3:36, 2:25] = True  # the brain's middle is not the array's
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) + 1
    image[:, :, :3] += 50000  # no low value in a mirrored place
    centre = np.array([24, 19, 13])
    centre[axis] += 6
    shape = ball(SHAPE, SPACING, centre, 6.0)
    new, _ = plant(Lowest(), "mirror", image, brain, shape, SPACING, mirrored(image, brain, axis))
    voxel = tuple(centre)
    twin = list(centre)
    twin[axis] = (5 + 42, 3 + 35, 2 + 24)[axis] - twin[axis]
    assert new[voxel] == image[tuple(twin)] != image[voxel]
    assert mirrored(brain, brain, axis)[brain].all()


def test_swap_takes_one_patch_from_elsewhere(scan):
    _, brain, shape, _ = scan
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    new, mask = plant(rng(1), "swap", image, brain, shape, SPACING)
    core = ball(SHAPE, SPACING, (26, 20, 15), 4.5)
    moved = np.unique(new[core] - image[core])
    assert len(moved) == 1 and moved[0] != 0
    source = np.array(np.unravel_index((image[mask] + moved[0]).astype(int), SHAPE))
    assert brain[tuple(source)].mean() >= 0.95 and mask[tuple(source)].mean() <= 0.05


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("brigth", {}, "unknown kind 'brigth'"),
        ("blend", {"donor": None}, "a blend needs a donor"),
        ("mirror", {"donor": None}, "a mirror needs a donor"),
        ("dark", {"shape": np.zeros(SHAPE, bool)}, "no voxel"),
        ("dark", {"brain": np.ones((3, 4, 5), bool)}, "image and brain"),
    ],
)
def test_what_cannot_be_planted_is_refused(kind, change, message, scan):
    values = dict(zip(("image", "brain", "shape", "donor"), scan, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        plant(rng(), kind, spacing=SPACING, **values)
