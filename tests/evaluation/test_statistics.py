"""Bootstrap statistics against scikit-learn, literally repeated cases and hand-computed numbers."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation.statistics import (
    holm,
    interval,
    p_value,
    resample_counts,
    weighted_auroc,
    weighted_average_precision,
)

METRICS = [(weighted_auroc, roc_auc_score), (weighted_average_precision, average_precision_score)]


def tied_cases(n=80, values=6, seed=0):
    """Scores with many ties, labels they predict a little, and weights of which some are 0."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    scores = rng.integers(0, values, n) / values + 0.3 * labels * (rng.random(n) < 0.5)
    return scores, labels.astype(int), rng.poisson(1.0, (25, n))


@pytest.mark.parametrize("metric, reference", METRICS)
@pytest.mark.parametrize("values", [2, 6, 10_000])
def test_weighted_metrics_agree_with_scikit_learn(metric, reference, values):
    scores, labels, counts = tied_cases(values=values)
    for weights in (counts, np.random.default_rng(1).random(counts.shape)):
        expected = [reference(labels, scores, sample_weight=row) for row in weights]
        np.testing.assert_allclose(metric(scores, labels, weights), expected, rtol=1e-12)


@pytest.mark.parametrize("metric, reference", METRICS)
def test_a_weight_repeats_a_case(metric, reference):
    scores, labels, counts = tied_cases(seed=2)
    expected = [reference(np.repeat(labels, row), np.repeat(scores, row)) for row in counts]
    np.testing.assert_allclose(metric(scores, labels, counts), expected, rtol=1e-12)


def test_weighted_metrics_by_hand():
    scores = np.array([0.9, 0.5, 0.5, 0.1])
    labels = np.array([1, 1, 0, 0])
    weights = np.array([[1, 1, 1, 1], [1, 2, 1, 0]])
    np.testing.assert_allclose(
        weighted_auroc(scores, labels, weights), [3.5 / 4, (1 + 2 * 0.5) / 3]
    )
    np.testing.assert_allclose(
        weighted_average_precision(scores, labels, weights),
        [0.5 + 0.5 * 2 / 3, 1 / 3 + 2 / 3 * 3 / 4],
    )


def test_equal_scores_carry_no_information():
    labels = np.array([1, 0, 0, 1, 0])
    weights = np.array([[1, 1, 1, 1, 1], [3, 0, 1, 0, 2]])
    np.testing.assert_allclose(weighted_auroc(np.full(5, 0.7), labels, weights), 0.5)
    # prevalence
    np.testing.assert_allclose(
        weighted_average_precision(np.full(5, 0.7), labels, weights), [2 / 5, 3 / 6]
    )


def test_one_positive():
    scores = np.linspace(0, 0.9, 10)
    labels = (np.arange(10) == 7).astype(int)
    weights = np.ones((1, 10))
    assert weighted_auroc(scores, labels, weights) == pytest.approx(7 / 9)
    assert weighted_average_precision(scores, labels, weights) == pytest.approx(1 / 3)


@pytest.mark.parametrize("metric", [weighted_auroc, weighted_average_precision])
def test_a_resample_without_a_class_is_not_defined(metric):
    scores = np.array([0.1, 0.2, 0.3])
    labels = np.array([0, 1, 0])
    with np.errstate(all="raise"):
        values = metric(scores, labels, np.array([[1, 0, 2], [0, 3, 0], [0, 0, 0], [1, 1, 1]]))
    assert np.isnan(values[:3]).all() and np.isfinite(values[3])
    assert np.isnan(metric(np.array([]), np.array([]), np.zeros((2, 0)))).tolist() == [True, True]
    assert metric(scores, labels, np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize("metric", [weighted_auroc, weighted_average_precision])
def test_weighted_metrics_refuse_awkward_input(metric):
    scores = np.array([0.1, 0.2])
    labels = np.array([0, 1])
    weights = np.ones((3, 2))
    for bad in (np.ones(2), np.ones((2, 3))):
        with pytest.raises(ValueError, match="2 columns"):
            metric(scores, labels, bad)
    for bad in (-weights, weights * np.nan):
        with pytest.raises(ValueError, match="at least 0"):
            metric(scores, labels, bad)
    with pytest.raises(ValueError, match="finite"):
        metric(scores * np.nan, labels, weights)
    with pytest.raises(ValueError, match="only 0 and 1"):
        metric(scores, labels + 1, weights)


def test_resamples_keep_the_strata_and_the_subjects_together():
    subjects = ["s3", "s1", "s1", "s2", "s5", "s4", "s3"]
    labels = ["healthy", "healthy", "abnormal", "abnormal", "healthy", "healthy", "healthy"]
    counts, index = resample_counts(subjects, labels, 400, seed=3)
    assert counts.shape == (400, 5) and np.issubdtype(counts.dtype, np.integer)
    # sorted by name; both cases of s1 share its count
    assert index.tolist() == [2, 0, 0, 1, 4, 3, 2]
    assert (counts[:, :2].sum(axis=1) == 2).all()  # s1 is abnormal by its second case
    assert (counts[:, 2:].sum(axis=1) == 3).all()
    # every multiset of 2 of 2 times every one of 3 of 3
    assert len(np.unique(counts, axis=0)) == 3 * 10


def test_a_subject_is_drawn_as_with_replacement():
    counts, _ = resample_counts([f"s{number:02d}" for number in range(20)], [0] * 20, 5000, seed=0)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.07)
    assert np.mean(counts == 0) == pytest.approx((1 - 1 / 20) ** 20, abs=0.01)


def test_resamples_depend_on_the_seed_alone():
    subjects = [f"s{number}" for number in range(12)]
    labels = [0, 1] * 6
    counts, _ = resample_counts(subjects, labels, 50, seed=7)
    np.testing.assert_array_equal(counts, resample_counts(subjects, labels, 50, seed=7)[0])
    words = ["abnormal" if label else "healthy" for label in labels]
    np.testing.assert_array_equal(counts, resample_counts(subjects, words, 50, seed=7)[0])
    assert (counts != resample_counts(subjects, labels, 50, seed=8)[0]).any()


def test_resamples_refuse_awkward_input():
    with pytest.raises(ValueError, match="unknown"):
        resample_counts(["a", "b"], ["healthy", "unknown"], 10, seed=0)
    with pytest.raises(ValueError, match="one label per case"):
        resample_counts(["a", "b"], ["healthy"], 10, seed=0)
    with pytest.raises(ValueError, match="1 resample"):
        resample_counts(["a"], ["healthy"], 0, seed=0)


def test_interval_by_hand():
    assert interval(np.arange(101.0), level=0.9) == pytest.approx((5, 95))
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert interval(np.append(np.arange(101.0), [np.nan] * 101), level=0.9) == pytest.approx(
        (5, 95)
    )
    for lost in (np.append(np.arange(101.0), [np.nan] * 102), np.array([]), np.array([np.nan])):
        assert np.isnan(interval(lost)).all()
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="between 0 and 1"):
            interval(np.arange(9.0), level=level)


def test_interval_of_a_chance_auroc_covers_one_half():
    rng = np.random.default_rng(5)
    covered = 0
    labels = [0, 1] * 25
    for repeat in range(100):
        counts, index = resample_counts(
            [f"s{number:02d}" for number in range(50)], labels, 300, seed=repeat
        )
        low, high = interval(
            weighted_auroc(rng.random(50), np.array(rng.permutation(labels)), counts[:, index])
        )
        covered += low <= 0.5 <= high
    assert 85 <= covered <= 99


def test_p_value():
    rng = np.random.default_rng(0)
    assert (
        p_value(rng.normal(1, 0.1, 999))
        == p_value(-rng.normal(1, 0.1, 999))
        == pytest.approx(2 / 1000)
    )
    assert p_value(rng.normal(0, 1, 999)) > 0.8
    assert p_value([-1.0, 1, 2, 3, 4, 5, 6, 7, np.nan]) == pytest.approx(2 * (1 + 1) / (8 + 1))
    assert p_value(np.zeros(50)) == 1
    assert np.isnan(p_value([])) and np.isnan(p_value([np.nan]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, np.nan, 0.01]) == pytest.approx([0.04, np.nan, 0.02], nan_ok=True)
    assert holm([0.01, 0.02, 0.022, 0.9]) == pytest.approx([0.04, 0.06, 0.06, 0.9])
    assert holm([0.7, 0.6]) == [1, 1]
    assert holm([0.2]) == [0.2] and holm([]) == []
    assert np.isnan(holm([np.nan, np.nan])).all()
    with pytest.raises(ValueError, match=r"0\.\.1"):
        holm([0.1, 1.1])
