"""Thresholds and percentiles against values counted by hand."""

import numpy as np
import pytest

from evaluation.metrics import VoxelHistogram
from evaluation.thresholds import healthy_quantile, percentile_of


@pytest.mark.parametrize(("quantile", "expected"), [(0.99, 99), (0.07, 7), (0.071, 8), (1, 100), (0, 1)])
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
    assert healthy_quantile(histogram, 0.98) == pytest.approx(healthy_quantile(scores, 0.98), rel=6e-4)


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
