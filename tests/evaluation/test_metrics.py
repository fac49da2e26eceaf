"""Metrics against hand-computed numbers and scikit-learn."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from evaluation.metrics import (
    VoxelHistogram,
    auroc,
    average_precision,
    classification,
    dice,
    false_positive_ml,
)

SHAPE = (5, 7, 3)


def residuals(n=20_000, positives=0.03, seed=0):
    """Scores as a residual map gives them: heavy-tailed, a third zeros, larger where anomalous."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < positives
    scores = rng.gamma(0.5, 0.05, n) * (1 + 3 * labels)
    scores[rng.random(n) < 0.3] = 0
    return scores.astype(np.float32), labels


def filled(scores, labels, **options):
    histogram = VoxelHistogram(**options)
    histogram.update(np.asarray(scores), np.asarray(labels))
    return histogram


def brute_dice(scores, labels, threshold):
    marked = scores > np.float32(threshold)
    return 2 * np.sum(marked & labels) / (marked.sum() + labels.sum())


def test_dice_by_hand():
    prediction = np.zeros(SHAPE, bool)
    truth = np.zeros(SHAPE, bool)
    prediction[0, :4, 0] = True
    truth[0, 2:7, 0] = True
    assert dice(prediction, truth) == pytest.approx(2 * 2 / (4 + 5))
    assert dice(truth, truth) == 1
    assert dice(np.zeros(SHAPE), truth) == 0
    assert dice(prediction.astype(np.uint8), truth.astype(np.float32)) == dice(prediction, truth)


def test_dice_of_an_empty_truth_is_not_defined():
    assert np.isnan(dice(np.zeros(SHAPE), np.zeros(SHAPE)))
    assert np.isnan(dice(np.ones(SHAPE), np.zeros(SHAPE)))


@pytest.mark.parametrize("bad", [np.full(SHAPE, 2), np.full(SHAPE, 0.5), np.full(SHAPE, np.nan)])
def test_masks_hold_only_zeros_and_ones(bad):
    with pytest.raises(ValueError, match="only 0 and 1"):
        dice(bad, np.ones(SHAPE))
    with pytest.raises(ValueError, match="one shape"):
        dice(np.ones(SHAPE), np.ones(SHAPE[::-1]))


def test_false_positive_volume_counts_only_voxels_outside_the_truth():
    prediction = np.zeros(SHAPE, bool)
    truth = np.zeros(SHAPE, bool)
    prediction[1, 1:5, 1] = True
    truth[1, 1, :] = True
    assert false_positive_ml(prediction, truth, (0.5, 2.0, 5.0)) == pytest.approx(3 * 5.0 / 1000)
    assert false_positive_ml(truth, truth, (0.5, 2.0, 5.0)) == 0
    for spacing in [(1, 1), (1, 1, 0), (1, 1, np.nan)]:
        with pytest.raises(ValueError, match="spacing"):
            false_positive_ml(prediction, truth, spacing)


def test_ranking_metrics_by_hand_with_ties():
    scores = np.array([0.9, 0.5, 0.5, 0.1])
    labels = np.array([1, 1, 0, 0])
    assert auroc(scores, labels) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert average_precision(scores, labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_ranking_agrees_with_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    for n in (2, 7, 300):
        labels = np.append(rng.integers(0, 2, n), [0, 1])
        scores = rng.integers(0, levels, n + 2) / 7 - 1
        assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        expected = average_precision_score(labels, scores)
        assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [auroc, average_precision])
def test_ranking_metrics_on_awkward_input(metric):
    assert np.isnan(metric(np.array([]), np.array([])))
    assert np.isnan(metric(np.array([0.1, 0.2]), np.array([0, 0])))
    assert np.isnan(metric(np.array([0.1, 0.2]), np.array([1, 1])))
    with pytest.raises(ValueError, match="finite"):
        metric(np.array([0.1, np.nan]), np.array([0, 1]))
    with pytest.raises(ValueError, match="only 0 and 1"):
        metric(np.array([0.1, 0.2]), np.array([1, 2]))
    with pytest.raises(ValueError, match="one shape"):
        metric(np.array([0.1, 0.2]), np.array([1]))
    with pytest.raises(ValueError, match="one dimension"):
        metric(np.zeros((2, 2)), np.array([0, 1]))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1000.0])
def test_histogram_agrees_with_scikit_learn_at_any_scale(scale):
    scores, labels = residuals()
    scores *= np.float32(scale)
    histogram = filled(scores, labels)
    assert histogram.average_precision() == pytest.approx(
        average_precision_score(labels, scores), abs=2e-4
    )
    assert histogram.auroc() == pytest.approx(roc_auc_score(labels, scores), abs=2e-5)


@pytest.mark.parametrize("maximum", [0.75, 1e4])  # ties at both ends of the range, and inside it
def test_histogram_with_ties_is_exact(maximum):
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, 500) / 4
    labels = rng.random(500) < 0.3
    histogram = filled(scores, labels, maximum=maximum)
    assert histogram.average_precision() == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    assert histogram.auroc() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.37])
def test_histogram_of_a_constant_map(constant):
    labels = np.arange(50) < 5
    histogram = filled(np.full(50, constant), labels)
    assert histogram.auroc() == 0.5
    assert histogram.average_precision() == pytest.approx(0.1)  # the prevalence
    best, threshold = histogram.oracle_dice()
    assert best == pytest.approx(2 * 5 / (50 + 5)) and threshold < constant
    assert histogram.dice_at(threshold) == best and histogram.dice_at(constant) == 0


def test_histogram_with_one_positive():
    scores = np.linspace(0, 0.9, 10)
    labels = np.arange(10) == 7
    histogram = filled(scores, labels)
    assert histogram.average_precision() == pytest.approx(1 / 3)
    assert histogram.auroc() == pytest.approx(7 / 9)
    best, threshold = histogram.oracle_dice()
    assert best == pytest.approx(2 / 4) and 0.6 <= threshold < 0.7


def test_histogram_without_positives_or_voxels():
    histogram = filled(np.linspace(0, 1, 9), np.zeros(9))
    for value in (histogram.average_precision(), histogram.auroc(), histogram.dice_at(0.5)):
        assert np.isnan(value)
    assert np.isnan(histogram.oracle_dice()).all()
    assert np.isnan(filled([], []).false_positive_rate_at(0.5)) and np.isnan(filled([], []).auroc())
    assert np.isnan(filled([1.0], [1]).average_precision())


def test_oracle_dice_is_the_best_of_all_thresholds():
    scores, labels = residuals(3000)
    best, threshold = filled(scores, labels).oracle_dice()
    every = max(brute_dice(scores, labels, value) for value in [-1, *np.unique(scores)])
    assert best == pytest.approx(every, abs=1e-3)
    assert brute_dice(scores, labels, threshold) == best  # the same rule on the map itself


def test_counts_at_an_edge_are_those_of_the_map_itself():
    scores, labels = residuals()
    histogram = filled(scores, labels)
    for threshold in [-1.0, 0.0, *map(histogram.quantile, (0.5, 0.99, 1)), 99.0]:
        marked = scores > threshold
        assert histogram.false_positive_rate_at(threshold) == np.mean(marked[~labels])
        assert histogram.dice_at(threshold) == brute_dice(scores, labels, threshold)
    with pytest.raises(ValueError, match="NaN"):
        histogram.dice_at(float("nan"))


def test_false_positive_rate_is_not_the_true_positive_rate():
    histogram = filled([0.0, 0.0, 0.8, 0.9, 0.1, 0.7], [0, 0, 0, 0, 1, 1])
    assert histogram.false_positive_rate_at(0.75) == 0.5
    assert histogram.false_positive_rate_at(0.5) == 0.5
    assert histogram.dice_at(0.5) == pytest.approx(2 * 1 / (3 + 2))


@pytest.mark.parametrize("q", [0, 0.29, 0.5, 0.95, 0.99, 0.999, 1])
def test_quantile_of_the_healthy_scores(q):
    scores, labels = residuals()
    healthy = scores[~labels]
    threshold = filled(scores, labels).quantile(q)
    assert threshold == pytest.approx(np.quantile(healthy, q, method="inverted_cdf"), rel=6e-4)
    assert np.mean(healthy > threshold) <= 1 - q + 1e-12


def test_quantile_needs_healthy_voxels_and_a_fraction():
    with pytest.raises(ValueError, match="label-0"):
        filled([0.5], [1]).quantile(0.9)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        filled([0.5], [0]).quantile(99)


def test_histograms_add_up():
    scores, labels = residuals()
    parts = [filled(scores[part::3], labels[part::3]) for part in range(3)]
    whole = filled(scores, labels)
    total = parts[0] + parts[1] + parts[2]
    np.testing.assert_array_equal(total.counts, whole.counts)
    assert parts[0].counts.sum() == len(scores[::3])  # adding changes no part
    with pytest.raises(ValueError, match="same maximum"):
        whole + VoxelHistogram(maximum=1.0)


def test_scores_out_of_range_are_refused():
    histogram = VoxelHistogram(maximum=1.0)
    histogram.update(np.array([0.0, 1.0]), np.array([0, 1]))
    for bad in [-0.1, 1.1, np.nan, np.inf]:
        with pytest.raises(ValueError, match=r"0\.\.1|finite"):
            histogram.update(np.array([bad]), np.array([0]))
    assert histogram.counts.sum() == 2
    with pytest.raises(ValueError, match="positive maximum"):
        VoxelHistogram(maximum=0)


@pytest.mark.parametrize("seed", range(5))
def test_classification_agrees_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores = rng.random(40).round(1)
    labels = rng.integers(0, 2, 40)
    got = classification(scores, labels, 0.4)
    marked = scores > 0.4
    want = {
        "accuracy": accuracy_score,
        "recall": recall_score,
        "precision": precision_score,
        "f1": f1_score,
    }
    for name, reference in want.items():
        assert got[name] == pytest.approx(reference(labels, marked))
    assert got["specificity"] == pytest.approx(recall_score(1 - labels, ~marked))


def test_classification_says_what_is_not_defined():
    nothing = classification(np.array([0.1, 0.2]), np.array([0, 1]), 0.5)
    assert (
        np.isnan(nothing["precision"])
        and nothing["recall"] == 0
        and nothing["f1"] == 0
        and nothing["specificity"] == 1
    )
    healthy = classification(np.array([0.1, 0.9]), np.array([0, 0]), 0.5)
    assert (
        np.isnan(healthy["recall"])
        and np.isnan(healthy["f1"])
        and healthy["precision"] == 0
        and healthy["accuracy"] == 0.5
    )


def test_merged_and_stored_bins_give_the_figures_of_all_bins():
    scores, labels = residuals()
    fine = filled(scores, labels)
    coarse = fine.coarser(15)
    assert (
        coarse.counts.sum() == fine.counts.sum()
        and (coarse.counts[:, 0] == fine.counts[:, 0]).all()
    )
    assert coarse.average_precision() == pytest.approx(
        average_precision_score(labels, scores), abs=2e-3
    )
    assert coarse.auroc() == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    stored = VoxelHistogram.from_rows(coarse.to_rows())
    assert stored.counts.size < coarse.counts.size
    assert stored.average_precision() == pytest.approx(
        coarse.average_precision()
    ) and stored.auroc() == pytest.approx(coarse.auroc())
    best, at = stored.oracle_dice()
    assert best == coarse.oracle_dice()[0] and brute_dice(scores, labels, at) == pytest.approx(
        best, abs=1e-12
    )
    for q in (0.5, 0.9, 0.99):
        assert stored.quantile(q) == coarse.quantile(q)
    empty = VoxelHistogram.from_rows([])
    assert np.isnan(empty.average_precision()) and np.isnan(empty.oracle_dice()[0])
    with pytest.raises(ValueError, match="cannot be merged by 7"):
        fine.coarser(7)


@pytest.mark.slow
def test_pooling_a_hundred_million_voxels_takes_no_more_memory_than_a_million():
    rng = np.random.default_rng(0)
    scores = rng.random(1_000_000, dtype=np.float32)
    labels = rng.random(1_000_000) < 0.02
    histogram = VoxelHistogram(maximum=1.0, bins=1001)
    tracemalloc.start()
    histogram.update(scores, labels)
    once = tracemalloc.get_traced_memory()[1]
    for _ in range(99):
        histogram.update(scores, labels)
    many = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert histogram.counts.sum() == 100_000_000 and many < 1.05 * once
    assert histogram.auroc() == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
