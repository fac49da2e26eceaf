"""Thresholds and percentiles against values counted by hand."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve

from evaluation.metrics import VoxelHistogram
from evaluation.thresholds import (
    Level,
    best_f1,
    conformal_threshold,
    healthy_level,
    healthy_quantile,
    p_value_of,
    percentile_of,
    weighted_level,
)


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


def test_level_of_few_scans_is_their_highest_and_says_what_it_promises():
    assert healthy_level(np.arange(6.0), 0.1) == Level(5.0, rank=6, n=6)
    assert healthy_level(np.arange(6.0), 0.1).alarm_rate == pytest.approx(1 / 7)
    nineteen = healthy_level(np.arange(1.0, 20.0), 0.1)
    assert (nineteen.value, nineteen.alarm_rate) == (18, pytest.approx(0.1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        healthy_level(np.arange(6.0), 1)


def test_level_holds_on_average_and_its_worst_rate_in_nineteen_of_twenty_cohorts():
    """4000 simulated cohorts of 12 healthy scans; scores are uniform, so the true rate is known."""
    rng = np.random.default_rng(3)
    rates = []
    for _ in range(4000):
        level = healthy_level(rng.random(12), 0.2)
        rates.append(1 - level.value)
    assert np.mean(rates) == pytest.approx(level.alarm_rate, abs=0.006)
    assert level.alarm_rate == pytest.approx(2 / 13)
    assert np.mean(np.array(rates) <= level.worst_rate()) == pytest.approx(0.95, abs=0.012)


def test_level_of_folds_keeps_its_bound():
    """CV-minmax simulated: a score is x minus the mean of what a fold's model has seen."""
    rng = np.random.default_rng(4)
    folds = 5
    size = 4
    alarms = []
    for _ in range(3000):
        healthy = rng.standard_t(3, size=(folds, size))
        means = [np.delete(healthy, fold, 0).mean() for fold in range(folds)]
        apart = np.abs(healthy - np.array(means)[:, None])
        level = healthy_level(apart.ravel(), 0.1, fold=size)
        new = np.abs(rng.standard_t(3) - np.array(means)).min()
        alarms.append(new > level.value)
    assert level.alarm_rate == pytest.approx((20 + 4 - 19) / 24)
    assert 0.02 < np.mean(alarms) < 0.13  # far below the bound of 0.21: that is the worst case


def test_p_value_by_hand_and_uniform():
    healthy = np.array([0.0, 0.0, 1.0, 2.0])
    expected = {0.0: 1.0, 0.5: 0.6, 1.0: 0.6, 2.0: 0.4, 2.1: 0.2}
    assert {s: p_value_of(s, healthy) for s in expected} == pytest.approx(expected)
    rng = np.random.default_rng(6)
    p = [p_value_of(rng.gamma(1.0), rng.gamma(1.0, size=19)) for _ in range(4000)]
    for rate in (0.05, 0.1, 0.5):
        assert np.mean(np.array(p) <= rate) == pytest.approx(rate, abs=0.02)


def test_a_weighted_level_by_hand_and_with_equal_weights():
    values = np.array([3.0, 1.0, 2.0, 4.0])
    assert weighted_level(values, np.array([1, 4, 2, 1]), 2, 0.4) == 2  # 4 + 2 of 10 reach 0.6
    assert weighted_level(values, np.array([1, 4, 2, 1]), 2, 0.39) == 3
    assert weighted_level(values, np.array([1, 4, 2, 1]), 2, 0.19) == float("inf")
    rng = np.random.default_rng(3)
    for n in (9, 19, 40):
        scores = rng.normal(size=n)
        for alarm in (0.1, 0.25):
            equal = weighted_level(scores, np.full(n, 0.3), 0.3, alarm)
            assert equal == conformal_threshold(scores, alarm)


def test_weights_that_are_none():
    values = np.array([1.0, 2.0])
    for weights, own in (([1, -1], 1), ([0, 0], 0), ([1, np.nan], 1), ([1], 1)):
        with pytest.raises(ValueError, match="weights must be one per value"):
            weighted_level(values, np.array(weights, float), own, 0.1)


def test_under_a_known_shift_the_weighted_level_keeps_the_promise_and_the_plain_one_does_not():
    """Scans differ by x, normal; new ones have it higher by 1, so w = exp(x - 1/2); scores rise."""
    rng = np.random.default_rng(4)
    plain = 0
    weighted = 0
    silent = 0
    draws = 3000
    for _ in range(draws):
        x = rng.normal(size=101)
        x[100] += 1
        scores = x + rng.normal(0, 0.5, 101)
        weights = np.exp(x - 0.5)
        plain += scores[100] > conformal_threshold(scores[:100], 0.1)
        level = weighted_level(scores[:100], weights[:100], weights[100], 0.1)
        weighted += scores[100] > level
        silent += level == float("inf")
    assert plain / draws > 0.25
    assert 0.06 < weighted / draws < 0.1 + 3 * np.sqrt(0.09 / draws)
    assert silent / draws < 0.1
