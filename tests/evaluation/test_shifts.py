"""Shifts of a healthy head: each by what it must change, and by what it must leave alone."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from evaluation.shifts import SEVERITIES, SHIFTS, Head, shifts_of

SHAPE = (60, 66, 52)  # three lengths: equal ones hide a turned axis
AFFINE = np.array([[-2.5, 0, 0, 74], [0, 2.0, 0, -66], [0, 0, 3.0, -78], [0, 0, 0, 1]])


def head(is_ct=False, is_stripped=False):
    """A ball of brain with a dark core and fine texture, in air that is not quite empty."""
    mm = np.stack(np.indices(SHAPE), -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    radius = np.linalg.norm(mm, axis=-1)
    grain = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 0.7)
    brain = radius < 55
    inside = np.where(radius < 15, 200, 500) + 40 * grain / grain.std()
    air = np.full(SHAPE, -1000.0 if is_ct else 0.0)
    if not is_stripped:
        air += np.abs(grain)  # as a scanner's noise; a stripped scan has none
    voxels = np.where(brain, inside / 10 if is_ct else inside, air)
    return Head(voxels.astype(np.float32), AFFINE, brain, np.zeros(3), is_ct)


def shifted(name, severity, of=None, seed=0):
    return SHIFTS[name](of or head(), severity, np.random.default_rng(seed))


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("is_ct", [False, True])
def test_a_shift_grows_with_severity_repeats_with_its_seed_and_leaves_its_input(name, is_ct):
    one = head(is_ct)
    before = one.voxels.copy()
    moved = [shifted(name, severity, one) for severity in SEVERITIES]
    np.testing.assert_array_equal(one.voxels, before)
    for severity, new in zip(SEVERITIES, moved, strict=True):
        assert new.voxels.dtype == np.float32 and np.isfinite(new.voxels).all()
        assert new.voxels.min() >= one.base
        np.testing.assert_array_equal(new.voxels, shifted(name, severity, one).voxels)
    if name not in ("wrong orientation", "thick slices", "missing slices", "CT window"):
        change = [np.abs(new.voxels - before)[one.brain].mean() for new in moved]
        assert 0 < change[0] < change[1] < change[2]


def test_gamma_keeps_the_99th_percentile_and_gain_every_ratio():
    one = head()
    top = np.percentile(one.voxels[one.brain], 99)
    new = shifted("gamma", 3)
    assert np.percentile(new.voxels[one.brain], 99) == pytest.approx(top, rel=1e-4)
    expected = top * (one.voxels[one.brain] / top) ** 2.2
    np.testing.assert_allclose(new.voxels[one.brain], expected, rtol=1e-4)
    np.testing.assert_allclose(shifted("gain", 3).voxels, 1.5 * one.voxels, rtol=1e-6)


def test_noise_has_its_deviation_and_is_rician_in_air():
    one = head()
    sd = 0.2 * one.range
    change = shifted("noise", 3).voxels - one.voxels
    assert change[one.brain].std() == pytest.approx(sd, rel=0.1)
    air = shifted("noise", 3).voxels[~one.brain]
    assert air.mean() == pytest.approx(sd * np.sqrt(np.pi / 2), rel=0.01)  # Rayleigh
    ct = head(is_ct=True)
    change = shifted("noise", 3, ct).voxels - ct.voxels
    assert change[ct.brain].mean() == pytest.approx(0, abs=0.05 * float(change[ct.brain].std()))


def test_what_was_cut_away_stays_empty():
    one = head(is_stripped=True)
    assert one.is_stripped and not head().is_stripped
    for name in ("noise", "blur", "ghosting", "motion", "bias field"):
        assert (shifted(name, 3, one).voxels[~one.brain] == 0).all(), name


def test_thick_slices_are_means_at_the_right_height():
    one = head()
    new = shifted("thick slices", 3)  # 3 mm to 8: three slices to one
    assert new.voxels.shape == (60, 66, 17) and new.spacing[2] == pytest.approx(9)
    np.testing.assert_allclose(new.voxels[:, :, 4], one.voxels[:, :, 12:15].mean(2), rtol=1e-4)
    place = new.affine @ [0, 0, 4, 1]
    np.testing.assert_allclose(place, one.affine @ [0, 0, 13, 1])
    assert shifted("thick slices", 1).voxels.shape == SHAPE


def test_air_is_the_least_of_a_ct_that_was_clipped():
    ct = head(is_ct=True)
    clipped = replace(ct, voxels=ct.voxels.clip(-20, 100))
    assert (ct.base, clipped.base, head().base) == (-1000, -20, 0)
    top = np.percentile(clipped.voxels[clipped.brain], 99)
    share = (clipped.voxels + 20) / (top + 20)
    expected = -20 + (top + 20) * share**2.2
    np.testing.assert_allclose(shifted("gamma", 3, clipped).voxels, expected, rtol=1e-4, atol=1e-3)


def test_a_ct_window_clips_and_mr_has_none():
    ct = head(is_ct=True)
    np.testing.assert_array_equal(shifted("CT window", 3, ct).voxels, ct.voxels.clip(0, 80))
    np.testing.assert_array_equal(shifted("CT window", 1, ct).voxels, ct.voxels.clip(-160, 240))
    np.testing.assert_array_equal(shifted("CT window", 3).voxels, head().voxels)
    assert shifts_of("ct") == list(SHIFTS)
    assert set(SHIFTS) - set(shifts_of("t1")) == {"gain", "CT window"}


def test_a_picture_has_the_shifts_that_need_no_volume():
    one = head()
    slab = replace(one, voxels=one.voxels[:, :, 26:27], brain=one.brain[:, :, 26:27])
    for name in shifts_of("picture"):
        new = shifted(name, 3, slab)
        assert new.voxels.shape == slab.voxels.shape and (new.voxels != slab.voxels).any(), name
        assert new.affine is slab.affine, name


def test_contrast_and_inversion_keep_the_middle():
    one = head()
    middle = np.median(one.voxels[one.brain])
    less = shifted("contrast", 3).voxels[one.brain]
    np.testing.assert_allclose(less - middle, 0.4 * (one.voxels[one.brain] - middle), atol=1e-2)
    turned = shifted("inverted contrast", 3).voxels
    assert np.corrcoef(turned[one.brain], one.voxels[one.brain])[0, 1] < -0.99
    np.testing.assert_array_equal(turned[~one.brain], one.voxels[~one.brain])


def test_a_bias_field_reaches_its_share_in_the_brain_and_no_more_anywhere():
    one = head()
    for seed in range(3):
        factor = shifted("bias field", 3, seed=seed).voxels / one.voxels - 1
        assert np.abs(factor[one.brain]).max() == pytest.approx(0.6, abs=1e-3)
        assert np.abs(factor[one.voxels > 0]).max() < 0.601


def test_motion_is_as_large_by_every_lot():
    """The moved lines are moved by the full way: another lot gives as much of a change."""
    one = head()
    changes = [
        np.abs(shifted("motion", 3, seed=seed).voxels - one.voxels).mean() for seed in range(9)
    ]
    assert min(changes) > 0.5 * max(changes)


def test_motion_of_all_lines_would_be_a_translation():
    """The phase of a line is that of a head that has moved: by the Fourier shift theorem."""
    one = head()
    still = shifted("motion", 1, seed=3).voxels
    assert still.sum() == pytest.approx(one.voxels.sum(), rel=0.03)  # the mean is k-space's middle
    ghost = shifted("ghosting", 3).voxels
    expected = (one.voxels + 0.3 * np.roll(one.voxels, 33, axis=1)) / 1.3
    np.testing.assert_allclose(ghost, expected, rtol=1e-4, atol=1e-2)


def test_ventricles_grow_and_nothing_moves_far_away():
    one = head()
    new = shifted("large ventricles", 3)
    dark = [(scan.voxels[scan.brain] < 350).sum() for scan in (one, new)]
    assert dark[1] > 1.3 * dark[0]
    mm = np.stack(np.indices(SHAPE), -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    far = np.linalg.norm(mm, axis=-1) > 46
    np.testing.assert_allclose(new.voxels[far], one.voxels[far], atol=0.05)


def test_vessels_are_thin_bright_and_few():
    one = head()
    rise = shifted("bright vessels", 2).voxels - one.voxels
    assert (rise != 0).sum() == pytest.approx(0.01 * one.brain.sum(), rel=0.02)
    assert rise[rise != 0] == pytest.approx(0.7 * one.range, rel=1e-3)
    assert one.brain[rise != 0].all()


def test_missing_slices_are_empty_and_the_wrong_header_moves_no_voxel():
    one = head()
    empty = (shifted("missing slices", 3).voxels == 0).all(axis=(0, 1))
    assert (empty & one.brain.any(axis=(0, 1))).sum() > 5
    assert empty.sum() >= round(0.25 * 52)
    for severity, axis in zip(SEVERITIES, range(3), strict=True):
        new = shifted("wrong orientation", severity)
        np.testing.assert_array_equal(new.voxels, one.voxels)
        np.testing.assert_allclose(new.affine[axis], -one.affine[axis])
