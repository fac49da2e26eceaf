"""MOOD's rules of AP against numbers by hand, scikit-learn, and the challenge's own steps."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from evaluation.metrics import VoxelHistogram
from evaluation.mood import pixel_ap, pooled_pixel_ap, sample_ap, unit_map, unit_score


def test_sample_ap_by_hand():
    # ranked 0.9 (1), 0.8 (0), 0.5 (1), 0.1 (0): precision 1 and 2/3 at the two hits
    assert sample_ap([0.1, 0.5, 0.8, 0.9], [0, 1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    # clipped: 7 and 1 are tied, so that both enter at once; a scan without a prediction is last
    assert sample_ap([7.0, 1.0, None], [0, 1, 1]) == pytest.approx(1 / 2 / 2 + 2 / 3 / 2)
    assert np.isnan(sample_ap([0.1, 0.2], [0, 0]))


def test_pixel_ap_by_hand():
    first = np.array([[[0.9, 0.5], [0.0, 0.0]]])
    lesion = np.array([[[1, 0], [1, 0]]])
    second = np.array([[[0.7, 0.0]]])  # of a healthy scan
    # ranked 0.9 (1), 0.7 (0), 0.5 (0), then 0 with one lesion voxel among three
    expected = 1 / 2 + (2 / 6) / 2
    pairs = [(first, lesion), (second, np.zeros((1, 1, 2)))]
    assert pixel_ap(pairs) == pytest.approx(expected)
    # without its healthy scan it would be higher, and a missing map counts as zeros
    assert pixel_ap(pairs[:1]) == pytest.approx(1 / 2 + (2 / 4) / 2)
    assert pixel_ap([(None, lesion), pairs[1]]) == pytest.approx(
        average_precision_score([1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0.7, 0])
    )
    assert np.isnan(pixel_ap(pairs[1:]))


def challenge(pairs):
    """The steps of the challenge: float16, clipped, all voxels in one list, scikit-learn."""
    scores = [np.clip(values.astype(np.float16), 0, 1).ravel() for values, _ in pairs]
    labels = [mask.ravel() for _, mask in pairs]
    return average_precision_score(np.concatenate(labels), np.concatenate(scores))


def random_pairs(rng, n=4):
    pairs = []
    for k in range(n):
        shape = (5 + k, 6, 7)
        mask = rng.random(shape) < (0.1 if k else 0)
        values = rng.exponential(0.2, shape) + 0.3 * mask  # some above 1
        values[rng.random(shape) < 0.4] = 0
        pairs.append((values, mask))
    return pairs


def test_pixel_ap_is_that_of_the_challenge():
    for seed in range(3):
        pairs = random_pairs(np.random.default_rng(seed))
        assert pixel_ap(pairs) == pytest.approx(challenge(pairs), abs=1e-12)
    shifted = [(values - 0.05, mask) for values, mask in pairs]  # some below 0
    assert pixel_ap(shifted) == pytest.approx(challenge(shifted), abs=1e-12)
    zero = np.array([-0.0, 0.0, 1.0])
    assert pixel_ap([(zero, np.array([1, 0, 0]))]) == pytest.approx(1 / 3)


def test_pixel_ap_refuses_what_is_no_map():
    with pytest.raises(ValueError, match="map and mask"):
        pixel_ap([(np.zeros((2, 2)), np.zeros((2, 3)))])
    with pytest.raises(ValueError, match="must be finite"):
        pixel_ap([(np.array([np.nan]), np.array([1]))])


def test_the_pooled_figure_is_the_ap_of_all_voxels():
    rng = np.random.default_rng(5)
    pairs = random_pairs(rng)
    voxels = VoxelHistogram()
    others = VoxelHistogram()
    missed = 0
    for k, (values, mask) in enumerate(pairs):
        brain = np.zeros(mask.shape, bool)
        brain[1:-1, 1:-1, 1:-1] = True
        values[~brain] = 0
        if k == 0:  # a healthy scan
            others.update(values.ravel(), np.zeros(values.size, int))
            continue
        voxels.update(values[brain], mask[brain])
        elsewhere = ~brain & ~mask
        others.update(values[elsewhere], np.zeros(elsewhere.sum(), int))
        missed += int((mask & ~brain).sum())
    labels = np.concatenate([mask.ravel() for _, mask in pairs])
    scores = np.concatenate([values.ravel() for values, _ in pairs])
    expected = average_precision_score(labels, scores)
    assert missed > 0
    assert pooled_pixel_ap(voxels, others, missed) == pytest.approx(expected, abs=1e-3)
    stored = [VoxelHistogram.from_rows(h.to_rows()) for h in (voxels, others)]
    again = pooled_pixel_ap(*stored, missed)
    assert again == pytest.approx(pooled_pixel_ap(voxels, others, missed), abs=1e-12)
    assert again < voxels.average_precision()
    assert np.isnan(pooled_pixel_ap(VoxelHistogram(), others, 0))


def test_maps_and_scores_keep_their_order_in_the_unit_interval():
    values = np.array([0, 1e-4, 0.02, 0.04, 3.0, 500.0], np.float32)
    mapped = unit_map(values, 0.04)
    assert mapped[0] == 0 and mapped[3] == pytest.approx(0.5) and mapped.dtype == np.float32
    assert (np.diff(mapped.astype(np.float16).astype(float)) > 0).all() and mapped.max() < 1
    with pytest.raises(ValueError, match="above 0"):
        unit_map(values, 0.0)

    healthy = [1.0, 3.0]  # mean 2, standard deviation 1
    assert unit_score(2.0, healthy) == 0.5 and unit_score(3.0, healthy) == 0.75
    assert unit_score(0.0, healthy) == pytest.approx(0.5 - 0.5 * 2 / 3)
    scores = [unit_score(s, healthy) for s in (-1e6, 0, 2, 50, 1e6)]
    assert sorted(scores) == scores and scores[0] > 0 and scores[-1] < 1
    assert unit_score(1.0, [4.0]) == 0.75 and unit_score(-1.0, []) == 0.25
