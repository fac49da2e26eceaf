"""Postprocessing against scipy, brute force in mm and hand-computed components."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from evaluation import postprocess
from evaluation.postprocess import (
    binarise,
    cluster_enhanced,
    components,
    erode_rim,
    keep_strong,
    location_of_maximum,
    smooth,
    strengths,
)

SHAPE = (13, 17, 9)
SPACING = (1.0, 0.5, 3.0)
# axes swapped too
FLIPPED = np.array([[0, 0, -3.0, 40], [1.0, 0, 0, 20], [0, 0.5, 0, -10], [0, 0, 0, 1]])


def blank(dtype=bool):
    return np.zeros(SHAPE, dtype)


def offsets(spacing, radius):
    """All voxel offsets of a ball of `radius` mm, the hard way."""
    reach = [int(radius / size + 1e-6) for size in spacing]
    grid = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij"), -1)
    return np.linalg.norm(grid * spacing, axis=-1) <= radius + 1e-6


def brute_closing(mask, spacing, radius):
    ball = offsets(spacing, radius)
    pad = 12
    padded = ndimage.binary_closing(np.pad(mask, pad), ball)
    return padded[(slice(pad, -pad),) * 3]


@pytest.mark.parametrize("size", [3, 5])
def test_smooth_equals_scipy_median(size):
    noisy = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(
        smooth(noisy, size), ndimage.median_filter(noisy, size, mode="nearest")
    )


@pytest.mark.parametrize("size", [3, 5])
def test_smooth_inside_a_mask_is_the_median_of_all_neighbours_there(size):
    """Beside SimpleITK's filter over the whole volume, at the edges of array and mask too."""
    noisy = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    inside = np.random.default_rng(2).random(SHAPE) < 0.4
    image = sitk.GetImageFromArray(noisy)
    want = sitk.GetArrayFromImage(sitk.Median(image, [size // 2] * 3))
    np.testing.assert_array_equal(smooth(noisy, size, inside), np.where(inside, want, 0))


def test_smooth_is_the_same_by_several_threads(monkeypatch):
    monkeypatch.setattr("evaluation.postprocess.MEDIAN_VOXELS", 7)
    noisy = np.random.default_rng(3).random(SHAPE).astype(np.float32)
    want = ndimage.median_filter(noisy, 3, mode="nearest")
    np.testing.assert_array_equal(smooth(noisy, 3, threads=3), want)


def test_smooth_crops_without_changing_the_result():
    noisy = blank(np.float64)
    # at two borders, of both signs
    noisy[0:6, 5:12, 6:9] = np.random.default_rng(0).normal(size=(6, 7, 3))
    expected = ndimage.median_filter(noisy.astype(np.float32), 5, mode="nearest")
    assert expected.any()
    np.testing.assert_array_equal(smooth(noisy, 5), expected)


@pytest.mark.parametrize("size", [0, 1])
def test_smooth_can_be_off_and_leaves_its_input_alone(size):
    noisy = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    result = smooth(noisy, size)
    np.testing.assert_array_equal(result, noisy)
    result[:] = 0
    assert noisy.any() and not smooth(blank(), 3).any()


def test_smooth_refuses_what_it_cannot_do():
    for size in (2, -1):
        with pytest.raises(ValueError, match="odd size"):
            smooth(blank(float), size)
    with pytest.raises(ValueError, match="finite"):
        smooth(np.full(SHAPE, np.nan), 3)
    with pytest.raises(ValueError, match="three dimensions"):
        smooth(np.zeros((4, 5)), 3)


@pytest.mark.parametrize("rim", [0.4, 0.5, 1.2, 3.0])
def test_erode_rim_in_mm(rim):
    brain = blank()
    brain[2:11, 1:16, 1:8] = True
    brain[5:7, 9, 4] = False  # a hole
    expected = brain & ~ndimage.binary_dilation(~brain, offsets(SPACING, rim))
    np.testing.assert_array_equal(erode_rim(brain, SPACING, rim), expected)


def test_erode_rim_keeps_cut_slices():
    brain = blank()
    brain[2:11, 1:16, :5] = True  # cut off at the lower array border, ends inside the array above
    eroded = erode_rim(brain, SPACING, 3.0)
    assert eroded[6, 8].tolist() == [True] * 4 + [False] * 5
    np.testing.assert_array_equal(erode_rim(brain, SPACING, 0), brain)
    assert erode_rim(np.ones(SHAPE), SPACING, 5).all() and not erode_rim(blank(), SPACING, 5).any()
    with pytest.raises(ValueError, match="rim_mm"):
        erode_rim(brain, SPACING, -1)


def test_binarise_marks_what_exceeds_the_threshold_in_the_brain():
    scores = blank(np.float32)
    brain = blank()
    scores[3, 4, 5] = 0.5
    scores[3, 4, 6] = 0.2
    scores[9, 9, 2] = 0.9
    brain[:6] = True
    # 0.2 is not > 0.2
    assert np.argwhere(binarise(scores, brain, SPACING, 0.2)).tolist() == [[3, 4, 5]]
    assert not binarise(blank(float), brain, SPACING, 0.0).any()
    np.testing.assert_array_equal(binarise(np.ones(SHAPE), brain, SPACING, 0.5), brain)


@pytest.mark.parametrize("few", [0, 1e9])  # distances everywhere, and voxel by voxel
@pytest.mark.parametrize("spacing", [SPACING, (3.0, 1.0, 0.7), (0.9, 0.9, 0.9)])
@pytest.mark.parametrize("radius", [0.0, 0.4, 1.0, 2.1, 3.0])
def test_closing_equals_brute_force(spacing, radius, few, monkeypatch):
    monkeypatch.setattr(postprocess, "FEW", few)
    scores = ndimage.gaussian_filter(np.random.default_rng(2).random(SHAPE), 0.5)
    brain = np.ones(SHAPE, bool)
    brain[:, 8, :] = False
    start = (scores > np.quantile(scores, 0.85)) & brain
    closed = binarise(scores, brain, spacing, np.quantile(scores, 0.85), closing_mm=radius)
    np.testing.assert_array_equal(closed, brute_closing(start, spacing, radius) & brain)
    assert not (start & ~closed).any()


def test_closing_is_the_same_in_any_order_of_memory(monkeypatch):
    """nibabel reads files with the first axis fastest."""
    monkeypatch.setattr(postprocess, "FEW", 1e9)
    scores = ndimage.gaussian_filter(np.random.default_rng(3).random(SHAPE), 0.5)
    level = np.quantile(scores, 0.85)
    brain = np.ones(SHAPE, bool)
    turned = binarise(np.asfortranarray(scores), np.asfortranarray(brain), SPACING, level, 2.1)
    np.testing.assert_array_equal(turned, binarise(scores, brain, SPACING, level, 2.1))
    np.testing.assert_array_equal(turned, brute_closing(scores > level, SPACING, 2.1))


def test_closing_bridges_along_fine_axes_only():
    for axis, bridged in enumerate(
        [True, True, False]
    ):  # gaps of 1, 0.5 and 3 mm between two plates
        scores = np.ones(SHAPE)
        np.moveaxis(scores, axis, 0)[4] = 0
        closed = binarise(scores, np.ones(SHAPE), SPACING, 0.5, closing_mm=1.0)
        gap = np.moveaxis(closed, axis, 0)[4]
        assert gap[gap.shape[0] // 2, gap.shape[1] // 2] == bridged


def test_closing_at_the_array_border_adds_nothing():
    scores = blank(np.float32)
    scores[0, 0, 0] = 1
    scores[12, 15, 4] = 1
    assert binarise(scores, np.ones(SHAPE), SPACING, 0.5, closing_mm=4).sum() == 2


def test_small_components_go_after_closing():
    scores = blank(np.float32)
    scores[2, 2, 2] = 1
    scores[3, 3, 3] = 1  # touch at a corner: one component of 2 voxels
    scores[8:11, 8, 5] = 1  # 3 voxels
    scores[9:12, 1:4, 7] = 1
    scores[10, 2, 7] = 0  # a ring of 8, which closing fills
    voxel = 1.5  # mm3
    sizes = {0: 13, 2 * voxel: 13, 2.1 * voxel: 11, 3 * voxel: 11, 3.1 * voxel: 8, 9 * voxel: 0}
    for minimum, left in sizes.items():
        assert binarise(scores, np.ones(SHAPE), SPACING, 0.5, min_volume_mm3=minimum).sum() == left
    closed = binarise(scores, np.ones(SHAPE), SPACING, 0.5, closing_mm=1, min_volume_mm3=9 * voxel)
    assert closed[10, 2, 7] and closed.sum() == 9


def test_binarise_refuses_bad_input():
    brain = np.ones(SHAPE)
    scores = np.full(SHAPE, 0.1)
    with pytest.raises(ValueError, match="finite"):
        binarise(np.where(scores > 0, np.nan, 0), brain, SPACING, 0.5)
    with pytest.raises(ValueError, match="threshold"):
        binarise(scores, brain, SPACING, float("nan"))
    with pytest.raises(ValueError, match="one shape"):
        binarise(scores.T, brain, SPACING, 0.5)
    with pytest.raises(ValueError, match="closing_mm"):
        binarise(scores, brain, SPACING, 0.5, closing_mm=-1)


def test_components_by_hand_under_a_flipped_affine():
    mask = blank()
    scores = blank(np.float32)
    mask[2:5, 3, 1] = True
    scores[2:5, 3, 1] = [0.2, 0.6, 0.4]
    mask[10, 12:16, 8] = True  # larger, but its peak is lower
    scores[10, 12:16, 8] = 0.3
    scores[0, 0, 0] = 9  # outside the mask
    second, first = components(mask, scores, FLIPPED)
    assert (first["strength"], second["strength"]) == (pytest.approx(0.3), pytest.approx(0.6))
    second, first = components(mask, scores, FLIPPED, low=0.1, kind="mass")
    assert first["strength"] == pytest.approx(4 * 0.2 * 0.0015)  # four voxels of 1.5 mm3, in ml
    assert second["strength"] == pytest.approx((0.1 + 0.5 + 0.3) * 0.0015)
    assert (first["n_voxels"], first["volume_mm3"]) == (4, pytest.approx(4 * 1.5))
    assert second["n_voxels"] == 3 and second["volume_mm3"] == pytest.approx(4.5)
    assert second["centre_voxel"] == [3, 3, 1] and second["peak_voxel"] == [3, 3, 1]
    assert second["centre_mm"] == pytest.approx([-3 * 1 + 40, 1 * 3 + 20, 0.5 * 3 - 10])
    assert second["peak"] == pytest.approx(0.6) and second["mean"] == pytest.approx(0.4)
    assert first["centre_voxel"] == [10, 13.5, 8] and first["peak_voxel"] == [10, 12, 8]
    assert first["peak_mm"] == pytest.approx([16, 30, -4]) and first["mean"] == pytest.approx(0.3)
    json.dumps([first, second])


def test_touching_lesions_are_one_component_and_interlocked_ones_are_two():
    mask = blank()
    mask[2, 2, 2] = True
    mask[3, 3, 3] = True
    assert len(components(mask, mask.astype(float), np.eye(4))) == 1
    mask = blank()
    mask[2:11, 2:11, 4] = True
    mask[4:9, 4:9, 4] = False  # a ring with a voxel in its box
    mask[6, 6, 4] = True
    found = components(mask, mask.astype(float), np.eye(4))
    assert [item["n_voxels"] for item in found] == [81 - 25, 1]
    assert found[1]["centre_voxel"] == [6, 6, 4]
    assert components(blank(), blank(float), np.eye(4)) == []


def test_location_of_maximum():
    scores = blank(np.float32)
    scores[4, 5, 6] = 0.75
    found = location_of_maximum(scores, FLIPPED)
    assert found == {"voxel": [4, 5, 6], "mm": pytest.approx([22, 24, -7.5]), "value": 0.75}
    json.dumps({**found, "mm": list(found["mm"])})
    assert location_of_maximum(-np.ones(SHAPE), np.eye(4))["voxel"] == [0, 0, 0]
    with pytest.raises(ValueError, match="finite"):
        location_of_maximum(np.full(SHAPE, np.nan), np.eye(4))
    with pytest.raises(ValueError, match="affine"):
        location_of_maximum(scores, np.diag([1, 0, 1, 1]))


def test_cluster_enhancement_of_boxes_is_the_integral_by_hand():
    values = np.zeros((20, 12, 8))
    values[1:4, 1:4, 1:4] = 2.0  # 27 voxels of 2 mm3
    values[8:18, 2:10, 2:6] = 1.0  # 320 voxels, with a peak of 4 voxels on it
    values[10:12, 4:6, 3] = 3.0
    found = cluster_enhanced(values, (1.0, 1.0, 2.0), steps=600)
    small, large, peak = (np.sqrt(n * 2 / 1000) for n in (27, 320, 4))
    assert found[2, 2, 2] == pytest.approx(small * 2**3 / 3, rel=1e-3)
    assert found[9, 3, 4] == pytest.approx(large / 3, rel=1e-3)
    assert found[10, 4, 3] == pytest.approx(large / 3 + peak * (27 - 1) / 3, rel=1e-3)
    assert (found[values == 0] == 0).all() and found.dtype == np.float32


def test_cluster_enhancement_equals_scipy_height_by_height():
    values = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(15, 16, 9)), 1.2)
    expected = np.zeros(values.shape)
    width = values.max() / 10
    for h in (np.arange(10) + 0.5) * width:
        labels, n = ndimage.label(values > h, structure=np.ones((3, 3, 3)))
        for i in range(1, n + 1):
            expected[labels == i] += (np.sum(labels == i) * 0.003) ** 0.7 * h**1.5 * width
    found = cluster_enhanced(values, (1.0, 1.5, 2.0), extent=0.7, height=1.5, steps=10)
    assert expected.max() > 0 and np.allclose(found, expected, rtol=1e-5)
    assert not cluster_enhanced(-np.abs(values), (1, 1, 1)).any()
    with pytest.raises(ValueError, match="NaN"):
        cluster_enhanced(np.full((2, 2, 2), np.nan), (1, 1, 1))


def test_strengths_in_the_order_of_labels_and_what_is_kept():
    """By hand: two components, the first one broad and low, the second one small and high."""
    scores = blank(float)
    scores[2:6, 2:6, 2:6] = 1.0
    scores[9, 9, 5] = 3.0
    marked = scores > 0.5
    peak = strengths(marked, scores, SPACING)
    mass = strengths(marked, scores, SPACING, 0.5, "mass")
    voxel_ml = np.prod(SPACING) / 1000
    assert peak.tolist() == [1.0, 3.0]
    np.testing.assert_allclose(mass, [64 * 0.5 * voxel_ml, 2.5 * voxel_ml])
    enhanced = cluster_enhanced(scores, SPACING)
    cluster = strengths(marked, scores, SPACING, 0.5, "cluster")
    np.testing.assert_allclose(cluster, [enhanced[3, 3, 3], enhanced[9, 9, 5]])
    assert np.argwhere(keep_strong(marked, peak, 1.0)).tolist() == [[9, 9, 5]]
    assert keep_strong(marked, mass, 3 * voxel_ml).sum() == 64
    assert not keep_strong(marked, peak, 3.0).any()  # equally strong is not stronger
    assert strengths(blank(), scores, SPACING).size == 0
    with pytest.raises(ValueError, match="one shape"):
        strengths(marked, scores.T, SPACING)


@pytest.mark.parametrize("kind", ["peak", "mass", "cluster"])
def test_a_higher_map_has_a_component_at_least_as_strong(kind):
    """What the levels of folds rest on; cluster enhancement up to its 25 steps of height."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        low = rng.gamma(1.0, size=SHAPE)
        high = low + rng.gamma(0.3, size=SHAPE)
        strongest = []
        for values in (low, high):
            marked = binarise(values, np.ones(SHAPE), SPACING, 2.0, 1.5, 5)
            strongest.append(strengths(marked, values, SPACING, 2.0, kind).max(initial=0))
        assert strongest[1] >= strongest[0] * (0.98 if kind == "cluster" else 1)
