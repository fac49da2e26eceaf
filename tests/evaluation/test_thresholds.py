"""Thresholds and percentiles against values counted by hand."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve

from evaluation.metrics import VoxelHistogram
from evaluation.thresholds import best_f1, conformal_threshold, healthy_quantile, percentile_of


@pytest.mark.parametrize(
    ("quantile", "expected"), [(0.99, 99), (0.07, 7), (0.071, 8), (1, 100), (0, 1)]
)
def test_quantile_by_hand(quantile, expected):
    values = np.random.default_rng(0).permutation(np.arange(1, 101))
    assert healthy_quantile(values, quantile) == expected


@pytest.mark.parametrize("n", [3, 10, 99])
def test_no_more_than_the_asked_fraction_exceeds_it(n):
    values = np.random.default_rng(n).integers(0, 5, n)  # many ties
    for quantile in (0.5, 0.9, 0.95):
        assert np.mean(values > healthy_quantile(values, quantile)) <= 1 - quantile


def test_histogram_and_array_give_one_threshold():
    scores = np.random.default_rng(0).gamma(0.5, 0.05, 5000)
    histogram = VoxelHistogram()
    histogram.update(scores, np.zeros(5000))
    histogram.update(np.full(100, 0.9), np.ones(100))  # anomalous voxels must not move it
    assert healthy_quantile(histogram, 0.98) == pytest.approx(
        healthy_quantile(scores, 0.98), rel=6e-4
    )


def test_percentile_counts_ties_as_not_above():
    healthy = np.array([0.1, 0.2, 0.2, 0.4])
    expected = {0.05: 0, 0.1: 25, 0.2: 75, 0.3: 75, 0.4: 100, 9: 100}
    assert {score: percentile_of(score, healthy) for score in expected} == expected


def test_empty_and_nan_are_refused():
    for bad, message in [([], "no healthy"), ([0.1, np.nan], "finite")]:
        with pytest.raises(ValueError, match=message):
            healthy_quantile(np.array(bad), 0.9)
        with pytest.raises(ValueError, match=message):
            percentile_of(0.5, np.array(bad))
    with pytest.raises(ValueError, match="NaN"):
        percentile_of(float("nan"), np.array([0.1]))
    with pytest.raises(ValueError, match=r"0\.\.1"):
        healthy_quantile(np.array([0.1]), 95)


def test_conformal_threshold_by_hand_and_its_refusal():
    scores = np.arange(1.0, 20.0)  # 19 scans
    assert conformal_threshold(scores, 0.05) == 19  # rank ceil(20 * 0.95) = 19
    assert conformal_threshold(scores, 0.10) == 18 and conformal_threshold(scores, 0.5) == 10
    with pytest.raises(
        ValueError, match=r"0\.05 needs at least 19 healthy validation scans, there are 18"
    ):
        conformal_threshold(scores[1:], 0.05)
    for rate in (0, 1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            conformal_threshold(scores, rate)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (9, 0.1), (30, 0.2), (50, 0.13)])
def test_new_healthy_scans_exceed_a_conformal_threshold_no_more_often_than_stated(n, rate):
    rng = np.random.default_rng(n)
    alarms = [
        rng.gamma(2.0) > conformal_threshold(rng.gamma(2.0, size=n), rate) for _ in range(6000)
    ]
    assert np.mean(alarms) <= rate + 3 * np.sqrt(rate * (1 - rate) / 6000)
    # and it is no blunter than it must be
    assert np.mean(alarms) > rate - 1 / (n + 1) - 3 * np.sqrt(rate * (1 - rate) / 6000)


@pytest.mark.parametrize("seed", range(6))
def test_best_f1_is_that_of_a_search_over_every_cut(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 30)
    labels[0] = 1
    scores = (rng.normal(size=30) + labels).round(1)  # with ties
    at, f1 = best_f1(scores, labels)
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert f1 == pytest.approx(
        np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    )
    assert f1_score(labels, scores > at) == pytest.approx(f1)


def test_best_f1_without_positives_or_differences():
    assert np.isnan(best_f1(np.array([1.0, 2]), np.array([0, 0]))).all()
    at, f1 = best_f1(np.zeros(4), np.array([0, 1, 0, 1]))
    assert at < 0 and f1 == pytest.approx(2 / 3)
