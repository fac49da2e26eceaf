"""How a scan as a whole compares with the training scans: known noise, shifts and volumes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import iqr

from pipelines import cli
from pipelines.detect.folder import seal
from pipelines.detect.typical import (
    Typical,
    compare_with,
    features_of,
    flags_of,
    ghost,
    histogram,
    noise,
    own_features,
    shading,
    sharpness,
    texture,
    write_typical,
)
from preprocessing.images import Grid
from preprocessing.prepare import Prepared
from preprocessing.quality import Check

SHAPE = (60, 64, 12)


def head(seed=0, sigma=0.02, shift=0.0, side=1.0):
    """A smooth brain with noise of a known deviation, in a box of 40 x 44 x 8 voxels."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, bool)
    brain[10:50, 10:54, 2:10] = True
    smooth = gaussian_filter(rng.normal(size=SHAPE), 6)
    image = 0.5 + shift + 0.1 * smooth / smooth.std() + sigma * rng.normal(size=SHAPE)
    grid = Grid(SHAPE, np.eye(4))
    home = Grid(SHAPE, np.diag([side, side, 3.0, 1.0]))
    checks = [Check("overlap with the atlas brain, rigid (Dice)", 0.9, low=0.6)]
    return Prepared((image * brain).astype(np.float32), brain, grid, home, np.eye(4), checks=checks)


@pytest.fixture
def typical():
    heads = [head(seed) for seed in range(8)]
    mean = np.mean([histogram(one) for one in heads], axis=0)
    features = {}
    for one in heads:
        for name, value in features_of(one, [c.row() for c in one.checks], mean).items():
            features.setdefault(name, []).append(value)
    return Typical(features=features, histogram=mean.tolist())


def names_outside(typical, scan):
    return {row.name for row in compare_with(typical, own_features(typical, scan)) if row.outside}


def test_sharpness_is_the_slope_over_the_spread_and_falls_with_blur():
    one = head()
    ramp = np.broadcast_to(np.arange(SHAPE[0], dtype=float)[:, None, None], SHAPE)
    inner = ramp[one.brain]
    sloped = replace(one, image=ramp.astype(np.float32))
    quartiles = iqr(inner)
    assert sharpness(sloped) == pytest.approx(1 / quartiles, rel=1e-6)
    wider = replace(sloped, grid=Grid(SHAPE, np.diag([2.0, 1, 1, 1])))
    assert sharpness(wider) == pytest.approx(0.5 / quartiles, rel=1e-6)
    blurred = replace(one, image=gaussian_filter(one.image, 1.5))
    assert sharpness(blurred) < 0.5 * sharpness(one)


def one_slice(prepared):
    """The middle axial slice of a prepared scan."""
    shape = (*SHAPE[:2], 1)
    image, brain = (array[:, :, 5:6] for array in (prepared.image, prepared.brain))
    return replace(prepared, image=image, brain=brain, grid=Grid(shape, prepared.grid.affine))


def test_a_single_slice_has_a_sharpness_and_no_sides():
    ramp = np.broadcast_to(np.arange(SHAPE[0], dtype=float)[:, None, None], SHAPE)
    flat = one_slice(replace(head(), image=ramp.astype(np.float32)))
    inner = np.broadcast_to(ramp[:, :, 5:6], flat.brain.shape)[flat.brain]
    assert sharpness(flat) == pytest.approx(1 / iqr(inner), rel=1e-6)
    assert set(shading(one_slice(head()))) == {"shading, back to front", "shading, middle to rim"}


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1])
def test_noise_is_the_deviation_that_was_added(sigma):
    assert noise(head(sigma=sigma)) == pytest.approx(sigma, rel=0.05)


def test_shading_is_the_difference_of_halves_over_the_median():
    even = head(sigma=0)
    ramp = 0.4 + 0.01 * np.arange(SHAPE[0])[:, None, None] + np.zeros(SHAPE)
    own = replace(even, image=(ramp * even.brain).astype(np.float32))
    found = shading(own)
    # columns 10 to 48 are seen; medians of 10..28 and 30..48 lie 20 columns apart, about 29
    assert found["shading, left to right"] == pytest.approx(0.2 / (0.4 + 0.29), rel=0.03)
    assert found["shading, back to front"] == pytest.approx(0, abs=0.02)
    assert found["shading, feet to head"] == pytest.approx(0, abs=0.02)
    away = np.abs(np.arange(SHAPE[1]) - 31.5)[None, :, None] * np.ones(SHAPE)
    rim = replace(even, image=((0.3 + 0.01 * away) * even.brain).astype(np.float32))
    assert shading(rim)["shading, middle to rim"] > 0.1
    lesion = own.image.copy()
    lesion[12:20, 14:30, 3:9] += 0.5  # 5 % of the brain
    assert shading(replace(own, image=lesion))["shading, left to right"] == pytest.approx(
        found["shading, left to right"], abs=0.06
    )
    assert shading(replace(even, image=np.zeros(SHAPE, np.float32))) == {}


def noisy(values):
    """A prepared cube of 60 x 64 x 12 voxels, all brain but its border."""
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    base = head()
    return replace(base, image=(values * brain).astype(np.float32), brain=brain)


@pytest.mark.parametrize(("axis", "name"), [(0, "left to right"), (1, "back to front")])
def test_an_echo_is_the_correlation_with_the_ghost(axis, name):
    """White noise with a times itself, moved: its autocorrelation there is a / (1 + a^2)."""
    rng = np.random.default_rng(0)
    share = 0.5
    wide = rng.normal(size=(80, 84, 12))
    plain = wide[20:, 20:]
    ghost = plain + share * (wide[:60, 20:] if axis == 0 else wide[20:, :64])
    before = texture(noisy(plain))
    after = texture(noisy(ghost))
    other = {"left to right": "back to front", "back to front": "left to right"}[name]
    assert after[f"near echo, {name}"] == pytest.approx(share / (1 + share**2), abs=0.05)
    assert before[f"near echo, {name}"] < 0.15 and after[f"near echo, {other}"] < 0.15


def test_a_far_echo_is_the_correlation_with_a_copy_in_any_direction():
    """White noise of 2 mm with half itself, moved by (10, 42, -6) mm: 0.4 where they overlap."""
    rng = np.random.default_rng(0)
    shape = (40, 60, 30)
    moved = (5, 21, -3)
    grid = Grid(shape, np.diag([2.0, 2, 2, 1]))
    brain = np.zeros(shape, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    plain = rng.normal(size=shape)
    copied = plain + 0.5 * np.roll(plain, moved, axis=(0, 1, 2))
    before, after = (
        ghost(replace(head(), image=(values * brain).astype(np.float32), brain=brain, grid=grid))
        for values in (plain, copied)
    )
    inner = np.array(shape) - (8, 8, 4)  # two voxels of the border, and two where slices erode
    share = np.prod((inner - np.abs(moved)) / inner)
    assert after["far echo"] == pytest.approx(0.5 / 1.25 * np.sqrt(share), rel=0.1)
    assert before["far echo"] < 0.05


def test_a_small_brain_has_no_echo_of_its_own_middle():
    """20 mm wide, so that the largest steps that are asked for are more than it has."""
    shape = (20, 60, 12)
    brain = np.zeros(shape, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    values = np.random.default_rng(4).normal(size=shape)
    image = (values * brain).astype(np.float32)
    found = texture(replace(head(), image=image, brain=brain, grid=Grid(shape, np.eye(4))))
    assert found["near echo, left to right"] < 0.15


def test_a_saturated_scan_has_no_echo_but_rounding():
    """More than half of it has one value, so that the median detail is none."""
    shape = (200, 200, 6)
    values = np.full(shape, 0.75)
    values[:55] = np.linspace(0, 0.7, 55)[:, None, None]
    brain = np.zeros(shape, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    image = (values * brain).astype(np.float32)
    found = texture(replace(head(), image=image, brain=brain, grid=Grid(shape, np.eye(4))))
    assert found["near echo, left to right"] == found["near echo, back to front"] == 0
    assert np.isfinite(list(found.values())).all()


def test_slopes_tell_along_which_axis_a_scan_is_blurred():
    """Against the slopes of the same voxels, by differences."""
    rng = np.random.default_rng(1)
    values = gaussian_filter(rng.normal(size=SHAPE), (0, 2, 0))
    found = texture(noisy(values))["slopes, back to front"]
    along = np.abs(values[1:-1, 2:] - values[1:-1, :-2]).mean()
    across = np.abs(values[2:, 1:-1] - values[:-2, 1:-1]).mean()
    assert found == pytest.approx(np.log(along / across), abs=0.1) and found < -0.5
    assert texture(noisy(rng.normal(size=SHAPE)))["slopes, back to front"] == pytest.approx(
        0, abs=0.1
    )


def test_bright_vessels_are_thin_and_a_lesion_is_not():
    """Thin sheets, 3 above a spread of 1.35, and a ball of 8 voxels as bright."""
    rng = np.random.default_rng(2)
    plain = gaussian_filter(rng.normal(size=SHAPE), 3)
    plain /= plain.std()
    vessels = plain.copy()
    vessels[10:-10:12] += 3
    lesion = plain.copy()
    lesion[np.linalg.norm(np.indices(SHAPE).T - [30, 30, 6], axis=-1).T < 8] += 3
    thin = [texture(noisy(v))["thin bright structures"] for v in (plain, vessels, lesion)]
    assert thin[1] > thin[0] + 0.5 and thin[2] == pytest.approx(thin[0], abs=0.1)


def test_a_brain_without_an_inner_part_has_no_texture():
    empty = noisy(np.zeros(SHAPE))
    assert texture(empty) == {}
    assert texture(replace(empty, image=head().image, brain=empty.brain & False)) == {}


def test_features_by_hand():
    one = head(side=0.8)
    found = features_of(one, [c.row() for c in one.checks], histogram(one))
    assert found["brain volume, ml"] == pytest.approx(40 * 44 * 8 / 1000)
    assert found["smallest voxel side, mm"] == pytest.approx(0.8)
    assert found["largest voxel side, mm"] == pytest.approx(3.0)
    assert found["overlap with the atlas brain, rigid"] == 0.9
    assert found["distance of the intensity histogram"] == 0
    larger = replace(one, scan_from_atlas=np.diag([1.1, 1.0, 1.0, 1.0]))
    assert features_of(larger, [], histogram(one))["brain volume, ml"] == pytest.approx(
        1.1 * 40 * 44 * 8 / 1000
    )


def test_the_histogram_s_distance_is_the_shift_of_all_values():
    one = head()
    moved = head(shift=0.1)
    distance = features_of(moved, [], histogram(one))["distance of the intensity histogram"]
    assert distance == pytest.approx(0.1, abs=0.004)


def test_a_scan_of_the_same_kind_is_not_flagged_and_others_are_by_what_differs(typical):
    assert names_outside(typical, head(seed=104)) == set()
    noisy = {"noise", "sharpness", "thin bright structures"}  # grains are thin too
    assert names_outside(typical, head(seed=104, sigma=0.06)) == noisy
    assert "distance of the intensity histogram" in names_outside(typical, head(104, shift=0.2))
    assert names_outside(typical, head(104, side=0.5)) == {"smallest voxel side, mm"}
    small = head(104)
    small.brain[10:35] = False
    assert "brain volume, ml" in names_outside(typical, small)
    (said,) = flags_of(compare_with(typical, own_features(typical, head(104, side=0.5))))
    assert said == "smallest voxel side, mm 0.5 is unlike the training scans (1 to 1)"


def test_percentiles_count_training_scans_with_no_more(typical):
    known = sorted(typical.features["noise"])
    scan = head(3)
    row = next(
        row for row in compare_with(typical, own_features(typical, scan)) if row.name == "noise"
    )
    assert row.percentile == 100 * sum(value <= noise(scan) for value in known) / 8
    assert (row.lowest, row.highest) == (known[0], known[-1])


def test_a_lesion_does_not_make_a_scan_unlike(typical):
    scan = head(104)
    scan.image[20:30, 20:30, 3:6] = 1.0  # 300 voxels of 14,080
    assert names_outside(typical, scan) == set()


def test_few_training_scans_say_nothing():
    few = Typical(features={"noise": [0.1] * 4}, histogram=histogram(head()).tolist())
    assert compare_with(few, own_features(few, head())) == []


def test_check_says_it_without_scoring(tiny_run, brain_t1, quick_prepare, command, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    known = {"brain volume, ml": [100.0, 110.0, 120.0, 130.0, 140.0]}
    write_typical(Typical(features=known, histogram=[1 / 64] * 64), tmp_path / "run")
    seal(tmp_path / "run")
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copyfile(brain_t1, folder / "good.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    done = command("check", "--run", tmp_path / "run", "--input", folder)
    assert done.code == cli.SOME_FAILED
    said = done.out.splitlines()
    assert said[0].startswith("bad: ") and "bad.nii.gz" in said[0]
    assert said[1] == "good: prepared as the training scans were"
    assert said[2].startswith("  flag: brain volume, ml")
    assert said[3].endswith("percentile 100 (training scans 100 to 140)")
    assert not list(tmp_path.rglob("*_mask.nii.gz"))
