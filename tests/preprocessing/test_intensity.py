"""Intensities against hand-made truth."""

import nibabel as nib
import numpy as np
import pytest

from pipelines.config import ConfigError, load_recipe
from preprocessing import intensity
from preprocessing.prepare import scale_intensity
from preprocessing.recipe import Intensity
from preprocessing.register import load_atlas
from preprocessing.scans import ScanError

NYUL = Intensity(kind="nyul")
WHITE = Intensity(kind="white", peak="upper", top=0.75)
SHAPE = (50, 60, 40)


def head(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A T1 of three tissues, (CSF 200, grey 500, white 800), and its brain; fat lies outside."""
    brain = np.zeros(SHAPE, bool)
    brain[5:45, 6:54, 4:36] = True
    tissue = rng.choice((200.0, 500.0, 800.0), p=(0.1, 0.5, 0.4), size=SHAPE)
    image = tissue + rng.normal(0, 40, SHAPE)
    image[~brain] = 5000
    return image, brain


def ct(rng: np.random.Generator, mode: float, blood: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of a CT around a mode, a share of them fresh blood, and its brain; bone outside."""
    brain = np.zeros(SHAPE, bool)
    brain[5:45, 6:54, 4:36] = True
    hu = rng.normal(mode, 6, SHAPE)
    kind = rng.random(SHAPE)
    hu[kind < 0.05] = 3  # CSF, more at one value than any tissue
    hu[kind < 0.02] = -1000  # air
    hu[kind > 1 - blood] = rng.normal(70, 5, int((kind > 1 - blood).sum()))
    hu[~brain] = 1200
    return hu, brain


def test_ct_window_is_fixed_and_mr_percentiles_are_of_the_brain():
    mask = np.zeros((4, 5, 6), bool)
    mask[1:3, 1:4, 1:5] = True
    hu = np.full(mask.shape, 40.0)
    hu[1, 1, 1:4] = (-50, 20, 300)
    shown = intensity.window(hu, mask, 0, 80)
    assert shown[1, 1, 1:4].tolist() == [0, 0.25, 1] and shown[2, 2, 2] == 0.5
    assert not shown[~mask].any() and shown.dtype == np.float32
    rng = np.random.default_rng(0)
    mr = rng.normal(500, 50, mask.shape)
    mr[~mask] = 1e6  # fat outside must not matter
    low, high = np.sort(mr[mask])[[0, -1]]
    whole = intensity.percentiles(mr, mask, 0, 100)
    np.testing.assert_allclose(whole[mask], (mr[mask] - low) / (high - low), atol=1e-6)
    one = intensity.percentiles(mr, mask, 1, 99)
    other = intensity.percentiles(mr * 7 + 3, mask, 1, 99)
    np.testing.assert_allclose(other, one, atol=1e-5)
    roomy = intensity.percentiles(mr, mask, 1, 50, 0.6)
    assert np.median(roomy[mask]) == pytest.approx(0.6, abs=1e-3)
    assert roomy.max() <= 1 and (roomy[mask] > 0.6).any()
    with pytest.raises(ScanError, match="constant"):
        intensity.percentiles(np.full(mask.shape, 7.0), mask, 1, 99)


@pytest.mark.parametrize("mode", [22.0, 34.4, 41.7])
def test_the_mode_of_brain_tissue_is_found_and_a_bleed_does_not_move_it(mode):
    hu, brain = ct(np.random.default_rng(1), mode, blood=0.0)
    assert intensity.tissue_mode(hu[brain]) == pytest.approx(mode, abs=1)
    bled, brain = ct(np.random.default_rng(1), mode, blood=0.1)
    assert np.mean(bled[brain]) > np.mean(hu[brain]) + 2
    assert intensity.tissue_mode(bled[brain]) == pytest.approx(mode, abs=1)
    assert intensity.tissue_mode(np.round(bled[brain])) == pytest.approx(mode, abs=1)


def test_tissue_shifts_the_whole_scan_before_the_window():
    hu, brain = ct(np.random.default_rng(2), 41.0, blood=0.1)
    how = Intensity(kind="window", low=0, high=80, tissue=32)
    shifted = scale_intensity(hu, brain, how)
    moved = scale_intensity(hu + 7.25, brain, how)  # a brighter scanner
    np.testing.assert_allclose(moved, shifted, atol=0.3 / 80)
    expected = np.clip((hu[brain] - 9) / 80, 0, 1)
    np.testing.assert_allclose(shifted[brain], expected, atol=1 / 80)
    assert not shifted[~brain].any()


def test_a_window_without_tissue_is_what_it_was():
    hu, brain = ct(np.random.default_rng(3), 34.0, blood=0.1)
    hu = hu.astype(np.float32)
    before = np.where(brain, np.clip((hu - 0.0) / (80.0 - 0.0), 0, 1), 0).astype(np.float32)
    now = scale_intensity(hu, brain, Intensity(kind="window", low=0, high=80))
    assert now.tobytes() == before.tobytes()


@pytest.mark.parametrize("values", [np.full(99, -1000.0), np.linspace(-100, 9, 999), np.empty(0)])
def test_a_scan_without_brain_tissue_in_hu_is_refused(values):
    with pytest.raises(ScanError, match="no peak of brain tissue between 10 and 60 HU"):
        intensity.tissue_mode(values)


def test_the_standard_values_are_those_of_the_atlas():
    atlas = load_atlas()
    found = np.percentile(atlas.image[atlas.brain], intensity.LANDMARKS)
    first, ceiling = np.percentile(atlas.image[atlas.brain], (1, 95))
    expected = 0.75 * (found - first) / (ceiling - first)
    np.testing.assert_allclose(intensity.STANDARD, expected, atol=1e-6)


@pytest.mark.parametrize("how", [NYUL, WHITE])
@pytest.mark.parametrize(("gain", "offset"), [(7.0, 0.0), (0.003, 0.0), (2.0, -350.0)])
def test_a_linear_change_of_grey_changes_nothing(how, gain, offset):
    image, brain = head(np.random.default_rng(4))
    one = scale_intensity(image, brain, how)
    other = scale_intensity(gain * image + offset, brain, how)
    assert one.dtype == np.float32 and not one[~brain].any() and one[brain].std() > 0.1
    np.testing.assert_allclose(other, one, atol=1e-4)


def test_a_curve_of_grey_leaves_the_landmarks_of_nyul_where_they_are():
    image, brain = head(np.random.default_rng(5))
    for changed in (image, np.sqrt(np.abs(image)), np.abs(image) ** 3):
        scaled = scale_intensity(changed, brain, NYUL)
        found = np.percentile(scaled[brain], intensity.LANDMARKS)
        np.testing.assert_allclose(found, intensity.STANDARD, atol=2e-3)


def test_pieces_are_straight_and_go_on_beyond_the_ends():
    values = np.array([-10.0, 0, 5, 10, 15, 20, 30])
    scaled = intensity.piecewise(values, np.array([0.0, 10, 20]), np.array([0.2, 0.4, 0.9]))
    np.testing.assert_allclose(scaled, [0.0, 0.2, 0.3, 0.4, 0.65, 0.9, 1.4])


def test_nyul_on_a_few_grey_values_by_hand():
    image = np.arange(101.0).reshape(101, 1, 1)  # percentile p is p
    brain = np.ones(image.shape, bool)
    scaled = intensity.nyul(image, brain).ravel()
    by_hand = {0: 0, 1: 0, 10: 0.265, 15: 0.325, 50: 0.515, 99: 0.785, 100: 0.785 + 0.055 / 9}
    for value, expected in by_hand.items():
        assert scaled[value] == pytest.approx(expected, abs=1e-6)

    two = np.repeat([3.0, 8.0], 50).reshape(100, 1, 1)  # landmarks coincide
    assert np.unique(intensity.nyul(two, np.ones(two.shape, bool))).tolist() == pytest.approx(
        [intensity.STANDARD[0], intensity.STANDARD[6]]
    )
    with pytest.raises(ScanError, match="constant"):
        intensity.nyul(np.full(SHAPE, 7.0), np.ones(SHAPE, bool))


def test_white_lays_the_mode_that_is_asked_for_at_top():
    image, brain = head(np.random.default_rng(6))
    values = image[brain]
    assert intensity.white_peak(values, "upper") == pytest.approx(800, abs=10)  # 40 % of the brain
    assert intensity.white_peak(values, "main") == pytest.approx(500, abs=10)  # 50 %
    lesion = values.copy()
    count = len(lesion) // 20  # a bright lesion of 5 % is no main mode
    lesion[:count] = np.random.default_rng(7).normal(1200, 50, count)
    assert intensity.white_peak(lesion, "upper") == pytest.approx(800, abs=10)

    scaled = scale_intensity(image, brain, WHITE)
    bottom = np.percentile(values, 1)
    expected = np.clip(0.75 * (values - bottom) / (800 - bottom), 0, 1)
    np.testing.assert_allclose(scaled[brain], expected, atol=0.02)
    flair = Intensity(kind="white", peak="main", top=0.5)
    near_grey = scale_intensity(image, brain, flair)[brain][np.abs(values - 500) < 1]
    assert np.mean(near_grey) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ScanError, match="constant"):
        intensity.white_peak(np.full(99, 7.0), "upper")


@pytest.mark.parametrize(
    ("modality", "settings", "what"),
    [
        ("ct", "{kind: window, low: 0}", "kind=window needs high"),
        ("ct", "{kind: window, low: 80, high: 0}", "low=80 must lie below high=0"),
        ("ct", "{kind: window, low: 0, high: 80, tissue: 90}", "from 10 to 60 HU"),
        ("ct", "{kind: window, low: 40, high: 80, tissue: 35}", "inside the window"),
        ("picture", "{kind: window, low: 0, high: 1, tissue: 30}", "from 10 to 60 HU"),
        ("t1", "{kind: percentiles, low: 1, high: 95, tissue: 30}", "goes with kind=window"),
        ("t1", "{kind: percentiles, low: 1, high: 950}", "percentiles lie from 0 to 100"),
        ("t1", "{kind: nyul, low: 1, high: 95}", "does not use low and high"),
        ("t1", "{kind: nyul, top: 0.75}", "leave top=0.75 out"),
        ("t1", "{kind: nyul, peak: upper}", "peak goes with kind=white"),
        ("t1", "{kind: white, top: 0.75}", "peak goes with kind=white"),
        ("t1", "{kind: white, peak: upper}", "top below 1"),
        ("t1", "{kind: white, peak: upper, top: 0.75, high: 95}", "does not use high"),
        ("t1", "{kind: white, peak: upper, top: 0.75, low: 60}", "below 50"),
        ("t1", "{kind: nuyl}", "nyul"),
    ],
)
def test_settings_that_make_no_sense_are_refused(modality, settings, what):
    with pytest.raises(ConfigError, match=what):
        load_recipe(modality, [f"intensity={settings}"])


@pytest.mark.parametrize(
    ("modality", "settings"),
    [
        ("ct", "{kind: window, low: 0, high: 80, tissue: 35}"),
        ("t1", "{kind: nyul}"),
        ("t1", "{kind: white, peak: upper, top: 0.75}"),
        ("flair", "{kind: white, peak: main, top: 0.5, low: 2}"),
    ],
)
def test_settings_read_back_as_they_were_written(modality, settings):
    how = load_recipe(modality, [f"intensity={settings}"]).intensity
    assert Intensity(**how.model_dump()) == how


@pytest.mark.parametrize(
    ("slope", "intercept"), [(1, 0), (1 / 300, -1.7), (1, -1024.3), (3.7, 5000), (1e-3, -0.123)]
)
def test_levels_are_the_same_after_any_linear_change(slope, intercept):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 4000, (40, 50, 30)).astype(np.int16)
    whole[:10] = 0
    changed = whole.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    found = intensity.grey_levels(changed)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, whole)

    holes = np.where(whole == 0, np.nan, changed)
    kept = whole > 0
    found = intensity.grey_levels(holes)
    assert np.isnan(found[~kept]).all()
    np.testing.assert_array_equal(found[kept], whole[kept] - whole[kept].min())


def test_levels_of_a_scan_that_was_stored_as_scaled_whole_numbers_are_found(tmp_path):
    """As nibabel stores floats under an int16 header: with a slope and intercept of its own."""
    whole = np.random.default_rng(0).integers(0, 900, (20, 30, 10))
    image = nib.Nifti1Image((whole / 211.3 - 1.9).astype(np.float32), np.eye(4))
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "x.nii")
    stored = nib.load(tmp_path / "x.nii").get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(intensity.grey_levels(stored), whole)


def test_a_negative_slope_is_another_scan():
    whole = np.random.default_rng(0).integers(0, 900, (20, 30, 10)).astype(np.float32)
    found = intensity.grey_levels(whole * np.float32(-0.5))
    np.testing.assert_array_equal(found, whole.max() - whole)


def test_values_that_are_no_levels_stay_as_they_are():
    rng = np.random.default_rng(0)
    uneven = rng.choice([0.0, 1.0, 2.4, 7.1], (9, 10, 11)).astype(np.float32)
    for data in (
        rng.random((90, 80, 70), dtype=np.float32),
        uneven,
        np.full((4, 5, 6), 3.0),
        np.full((4, 5, 6), np.nan),
    ):
        assert intensity.grey_levels(data) is data
