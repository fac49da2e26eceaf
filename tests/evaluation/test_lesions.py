"""Lesion-wise metrics against brute force and hand-built volumes."""

import json

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from evaluation.lesions import (
    by_size,
    froc,
    hausdorff95,
    lesions_of,
    match,
    peak_distance_mm,
    precision,
    precision_by_size,
)

SHAPE = (11, 17, 8)
SPACING = (0.5, 1.0, 3.0)
VOXEL_ML = 1.5 / 1000


def surface(mask):
    """Voxels of a mask that have a face neighbour outside it or the array, each checked by hand."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return mask & ~inner


def brute_hausdorff95(prediction, truth, spacing):
    points = [np.argwhere(surface(mask)) * np.array(spacing) for mask in (prediction, truth)]
    distances = cdist(*points)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


def blob(seed, share=0.1):
    noise = gaussian_filter(np.random.default_rng(seed).random(SHAPE), 1.5)
    return noise > np.quantile(noise, 1 - share)


def box(*slices, value=1):
    volume = np.zeros(SHAPE, dtype=np.uint8)
    volume[slices] = value
    return volume


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [SPACING, (1, 1, 1), (4.0, 0.7, 1.3)])
def test_hausdorff_agrees_with_brute_force(seed, spacing):
    # some touch the border of the array
    prediction = blob(seed)
    truth = blob(seed + 100, share=0.05 + 0.05 * seed)
    expected = brute_hausdorff95(prediction, truth, spacing)
    assert expected > 0
    assert hausdorff95(prediction, truth, spacing) == pytest.approx(expected, rel=1e-5)
    assert hausdorff95(truth, prediction, spacing) == pytest.approx(expected, rel=1e-5)


def test_the_brute_force_surface_is_the_mask_without_its_erosion():
    mask = blob(1, share=0.4)
    np.testing.assert_array_equal(surface(mask), mask & ~binary_erosion(mask))


def test_hausdorff_by_hand():
    truth = box(slice(3, 6), slice(4, 8), slice(2, 5))
    assert hausdorff95(truth, truth, SPACING) == 0
    for axis, size in enumerate(SPACING):
        assert hausdorff95(np.roll(truth, 1, axis), truth, SPACING) == pytest.approx(size)
    voxels = box(2, 3, 4), box(5, 7, 4)
    assert hausdorff95(*voxels, SPACING) == pytest.approx(np.hypot(3 * 0.5, 4 * 1.0))
    whole = np.ones(SHAPE)  # its surface is the border of the array
    assert hausdorff95(whole, whole, SPACING) == 0


def test_hausdorff_leaves_out_the_furthest_twentieth():
    # 40 voxels, all of them surface
    truth = box(0, 0, slice(0, 8)) + box(slice(1, 5), 0, slice(0, 8))
    stray = truth.copy()
    stray[10, 16, 7] = 1  # 1 of 41
    assert hausdorff95(stray, truth, SPACING) == 0


@pytest.mark.filterwarnings("error:.*is all 0")  # MONAI is not asked
def test_hausdorff_of_an_empty_mask_is_not_defined():
    empty = np.zeros(SHAPE)
    full = box(3, 3, 3)
    for prediction, truth in [(empty, full), (full, empty), (empty, empty)]:
        assert np.isnan(hausdorff95(prediction, truth, SPACING))
    with pytest.raises(ValueError, match="one shape"):
        hausdorff95(full, full.transpose(), SPACING)
    with pytest.raises(ValueError, match="only 0 and 1"):
        hausdorff95(full * 2, full, SPACING)
    with pytest.raises(ValueError, match="spacing"):
        hausdorff95(full, full, (1, 1))


def test_lesions_touch_across_a_corner():
    truth = box(2, 2, 2) + box(3, 3, 3) + box(7, 7, 7)
    lesions = lesions_of(truth)
    assert lesions.shape == SHAPE and np.issubdtype(lesions.dtype, np.integer)
    assert lesions[2, 2, 2] == lesions[3, 3, 3] != lesions[7, 7, 7]
    np.testing.assert_array_equal(lesions > 0, truth > 0)
    for same in (truth.astype(bool), truth.astype(float)):
        np.testing.assert_array_equal(lesions_of(same), lesions)
    assert len(match(truth, truth * 0.5, truth, SPACING)["candidates"]) == 2
    assert not lesions_of(np.zeros(SHAPE)).any()


def test_touching_lesions_with_their_own_labels_stay_two():
    left = box(slice(2, 5), 4, 2)
    right = box(slice(5, 9), 4, 2)
    assert lesions_of(left + right).max() == 1
    lesions = lesions_of(left + 2 * right)
    assert sorted(np.bincount(lesions.ravel())[1:]) == [3, 4]
    # one label in two places is two lesions
    apart = lesions_of(left + 2 * right + 2 * box(1, 12, 6))
    assert sorted(np.bincount(apart.ravel())[1:]) == [1, 3, 4]
    assert len(match(left, left * 0.5, left + 2 * right, SPACING)["lesions"]) == 2
    assert len(match(left, left * 0.5, left + right, SPACING)["lesions"]) == 1


@pytest.mark.parametrize("bad", [-1, 0.5, np.nan, np.inf])
def test_a_truth_holds_whole_numbers(bad):
    with pytest.raises(ValueError, match="whole numbers"):
        lesions_of(box(1, 1, 1) * 1.0 + np.where(box(5, 5, 5), bad, 0))


def test_match_by_hand():
    hit = box(slice(1, 5), slice(2, 7), slice(1, 3))
    missed = box(slice(8, 10), slice(12, 14), 6)
    found = box(slice(3, 7), slice(2, 7), slice(2, 4))
    false = box(9, slice(2, 5), 1)
    anomaly_map = np.full(SHAPE, 0.05)
    anomaly_map[found > 0] = 0.3
    anomaly_map[false > 0] = 0.4
    anomaly_map[6, 6, 3] = 0.7
    anomaly_map[8, 12, 6] = 0.9  # high, but not in the prediction
    result = match(found + false, anomaly_map, hit + missed, SPACING)
    assert result["lesions"] == [
        {
            "volume_ml": pytest.approx(40 * VOXEL_ML),
            "covered": pytest.approx(10 / 40),
            "score": 0.7,
        },
        {"volume_ml": pytest.approx(4 * VOXEL_ML), "covered": 0.0, "score": 0.0},
    ]
    assert result["candidates"] == [
        {"volume_ml": pytest.approx(40 * VOXEL_ML), "score": 0.7, "true": True},
        {"volume_ml": pytest.approx(3 * VOXEL_ML), "score": 0.4, "true": False},
    ]
    assert json.loads(json.dumps(result)) == result  # no numpy numbers
    assert precision(result["candidates"]) == 0.5


@pytest.mark.parametrize("voxels, detected", [(1, False), (2, True), (20, True)])
def test_a_lesion_is_detected_from_a_tenth_on(voxels, detected):
    truth = box(5, slice(1, 5), slice(1, 6))  # 20 voxels
    prediction = np.zeros(SHAPE, bool)
    prediction[tuple(np.argwhere(truth)[:voxels].T)] = True
    result = match(prediction, prediction * 0.6, truth, SPACING)
    assert result["lesions"][0]["covered"] == voxels / 20
    assert result["lesions"][0]["score"] == (0.6 if detected else 0)
    assert result["candidates"] == [
        {"volume_ml": pytest.approx(voxels * VOXEL_ML), "score": 0.6, "true": True}
    ]
    assert (
        match(prediction, prediction * 0.6, truth, SPACING, min_overlap=0.05)["lesions"][0]["score"]
        == 0.6
    )


def test_a_lesion_has_the_highest_score_of_its_candidates_and_they_may_cover_it_together():
    truth = box(5, slice(0, 10), slice(0, 2))  # 20 voxels
    first = box(slice(5, 8), 0, 0)
    second = box(slice(4, 8), 9, 1)
    result = match(first + second, first * 0.2 + second * 0.8, truth, SPACING)
    assert result["lesions"] == [
        {"volume_ml": pytest.approx(20 * VOXEL_ML), "covered": 0.1, "score": 0.8}
    ]
    # a fourth or a third on truth
    assert [candidate["true"] for candidate in result["candidates"]] == [True, True]


def test_a_candidate_is_true_by_its_own_voxels_or_by_a_lesion_it_covers():
    def true(candidate, truth):
        return [
            row["true"] for row in match(candidate, candidate * 0.5, truth, SPACING)["candidates"]
        ]

    large = box(slice(0, 10), slice(0, 10), slice(0, 2))  # 200 voxels
    assert true(large, box(4, 4, 1)) == [True]  # 0.5 % of it, but all of the lesion
    # 1 voxel of 56: 0.5 % of it, 2 % of the lesion
    assert true(large, box(9, slice(9, 17), slice(1, 8))) == [False]
    # 2 % of the lesion, but a third of it
    assert true(box(9, slice(8, 11), 1), box(9, slice(10, 17), slice(1, 8))) == [True]
    assert true(large, box(10, 16, 7)) == [False]


def test_a_candidate_on_two_lesions_counts_both():
    lesions = box(2, slice(2, 5), 2) + box(6, slice(2, 5), 2)
    bridge = box(slice(2, 7), 3, 2)
    result = match(bridge, bridge * 0.5, lesions, SPACING)
    assert [(lesion["covered"], lesion["score"]) for lesion in result["lesions"]] == [
        (pytest.approx(1 / 3), 0.5)
    ] * 2
    assert len(result["candidates"]) == 1


def test_match_without_lesions_or_candidates():
    empty = np.zeros(SHAPE)
    mask = box(slice(2, 4), 3, 3)
    assert match(empty, empty, empty, SPACING) == {"lesions": [], "candidates": []}
    assert match(empty, empty, mask, SPACING) == {
        "lesions": [{"volume_ml": pytest.approx(2 * VOXEL_ML), "covered": 0.0, "score": 0.0}],
        "candidates": [],
    }
    assert match(mask, mask * 0.5, empty, SPACING) == {
        "lesions": [],
        "candidates": [{"volume_ml": pytest.approx(2 * VOXEL_ML), "score": 0.5, "true": False}],
    }


def test_match_refuses_awkward_input():
    mask = box(2, 2, 2)
    for scores in (
        mask * 0.0,
        mask * -1.0,
        np.where(mask, np.nan, 0.5),
        np.where(mask, np.inf, 0.5),
    ):
        with pytest.raises(ValueError, match="anomaly map"):
            match(mask, scores, mask, SPACING)
    for overlap in (0, 1.1):
        with pytest.raises(ValueError, match="min_overlap"):
            match(mask, mask, mask, SPACING, min_overlap=overlap)
    for arrays in ((mask, mask.transpose(), mask), (mask, mask, mask.transpose())):
        with pytest.raises(ValueError, match="one shape"):
            match(*arrays, SPACING)


def test_by_size_by_hand():
    lesions = [
        {"volume_ml": volume, "score": score}
        for volume, score in [(0.1, 0), (0.2, 0.4), (0.9, 0.0), (0.99, 0.1), (1, 0.3), (400, 0)]
    ]
    bins = by_size(lesions)
    assert [(row["from_ml"], row["to_ml"]) for row in bins] == [
        (0, 0.2),
        (0.2, 1),
        (1, 5),
        (5, 20),
        (20, float("inf")),
    ]
    assert [(row["n"], row["detected"]) for row in bins] == [(1, 0), (3, 2), (1, 1), (0, 0), (1, 0)]
    assert [row["sensitivity"] for row in bins] == pytest.approx(
        [0, 2 / 3, 1, np.nan, 0], nan_ok=True
    )
    assert by_size(lesions, edges_ml=(0.2, 1)) == [bins[1]]
    assert all(np.isnan(row["sensitivity"]) for row in by_size([]))
    for edges in ((1,), (0, 1, 1), (5, 1)):
        with pytest.raises(ValueError, match="rising"):
            by_size(lesions, edges_ml=edges)


def test_precision_by_size_by_hand():
    marks = [
        {"volume_ml": volume, "true": true}
        for volume, true in [(0.1, False), (0.3, True), (0.9, False), (30.0, True)]
    ]
    bins = precision_by_size(marks)
    assert [(row["n"], row["true"]) for row in bins] == [(1, 0), (2, 1), (0, 0), (0, 0), (1, 1)]
    assert [row["precision"] for row in bins] == pytest.approx(
        [0, 0.5, np.nan, np.nan, 1], nan_ok=True
    )


def test_froc_by_hand():
    lesions = [{"score": score} for score in (0.9, 0.5, 0.0, 0.9)]
    candidates = [
        {"score": score, "true": true}
        for score, true in [(0.9, True), (0.7, False), (0.5, True), (0.5, False), (0.2, False)]
    ]
    assert froc(lesions, candidates, n_scans=2) == {
        "false_positives_per_scan": [0, 0, 0.5, 1, 1.5],
        "sensitivity": [0, 0.5, 0.5, 0.75, 0.75],
    }


def test_froc_and_precision_of_nothing():
    assert froc([{"score": 0.0}], [], n_scans=3) == {
        "false_positives_per_scan": [0],
        "sensitivity": [0],
    }
    curve = froc([], [{"score": 0.5, "true": False}], n_scans=4)
    assert curve["false_positives_per_scan"] == [0, 0.25] and np.isnan(curve["sensitivity"]).all()
    assert froc([], [], n_scans=1)["false_positives_per_scan"] == [0]
    with pytest.raises(ValueError, match="1 scan"):
        froc([], [], n_scans=0)
    assert np.isnan(precision([]))
    assert precision([{"true": True}, {"true": False}, {"true": True}]) == pytest.approx(2 / 3)


def test_the_peak_of_a_map_is_measured_to_the_nearest_lesion_voxel():
    truth = box(slice(2, 4), slice(3, 5), slice(2, 3)) > 0
    values = np.zeros(SHAPE)
    values[3, 4, 2] = 1
    assert peak_distance_mm(values, truth, SPACING) == 0
    values[9, 4, 2] = 2  # six voxels of 0.5 mm from the lesion's last row
    assert peak_distance_mm(values, truth, SPACING) == pytest.approx(3.0)
    values[9, 8, 5] = 3
    assert peak_distance_mm(values, truth, SPACING) == pytest.approx(np.sqrt(3**2 + 4**2 + 9**2))
    assert np.isnan(peak_distance_mm(values, truth & False, SPACING))
    assert np.isnan(peak_distance_mm(values * 0, truth, SPACING))
