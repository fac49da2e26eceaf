"""The bootstrap over subjects against repeated cases, scikit-learn and chance."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation.bootstrap import bootstrap, resampled
from evaluation.statistics import interval
from tests.evaluation.records import lesion, scan


def random_scans(rng, n=60, shift=0.0):
    labels = ["healthy"] * (n // 2) + ["abnormal"] * (n // 2)
    return [
        scan(f"s{i}", label, float(rng.normal() + shift * (label == "abnormal")))
        for i, label in enumerate(labels)
    ]


def test_bootstrap_figures_are_those_of_repeated_cases():
    """Each resample's AUROC, AP and means, computed again with the subjects literally repeated."""
    rng = np.random.default_rng(0)
    scans = [
        lesion(
            f"a{i}",
            round(rng.normal() + 1, 1),
            rng.random(),
            int(rng.integers(9)),
            int(rng.integers(10, 30)),
            int(rng.integers(10, 30)),
        )
        for i in range(7)
    ] + [
        scan(f"h{i}", "healthy", round(rng.normal(), 1), false_positive_ml=rng.random())
        for i in range(8)
    ]
    counts = rng.integers(0, 4, (5, len(scans)))
    counts[:, [0, 7]] += 1
    place = {s["subject"]: i for i, s in enumerate(scans)}
    for b in range(5):
        many = list(np.repeat(np.array(scans, dtype=object), counts[b]))
        y = [s["label"] == "abnormal" for s in many]
        score = [s["score"] for s in many]
        ill = [s for s in many if s["label"] == "abnormal"]
        want = {
            "scan_auroc": roc_auc_score(y, score),
            "scan_ap": average_precision_score(y, score),
            "dice_mean": np.mean([s["dice"] for s in ill]),
            "dice_pooled": 2
            * sum(s["overlap_voxels"] for s in ill)
            / sum(s["mask_voxels"] + s["truth_voxels"] for s in ill),
            "healthy_false_positive_ml": np.mean(
                [s["false_positive_ml"] for s in many if s["label"] == "healthy"]
            ),
        }
        for figure, value in want.items():
            got = resampled(scans, [], figure, lambda name: counts[:, place[name]])
            assert got[b] == pytest.approx(value), figure


def test_slices_of_a_subject_are_drawn_together():
    scans = [scan("h", "healthy", 0), scan("g", "healthy", 0), scan("x", "abnormal", 1)]
    slices = [
        {"id": i, "label": k, "score": s}
        for i, k, s in (
            ("h/0", 0, 0.1),
            ("h/1", 0, 0.2),
            ("g/0", 0, 0.9),
            ("x/0", 1, 0.5),
            ("x/1", 0, 0.0),
        )
    ]
    weights = {"h": np.array([2, 1]), "g": np.array([0, 1]), "x": np.array([1, 1])}
    got = resampled(scans, slices, "slicewise_auroc", weights.get)
    np.testing.assert_allclose(got, [1, 2 / 3])
    clinical = resampled(scans, slices, "clinical_slicewise_auroc", weights.get)
    np.testing.assert_allclose(clinical, [0.5, (2 + 0) / 6])


def test_shuffled_labels_give_one_half_within_the_interval():
    """Labels that mean nothing: the interval holds 0.5 about as often as it says."""
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        scans = random_scans(rng)
        low, high = interval(bootstrap([(scans, [])], "scan_auroc", 300, seed=trial))
        hits += low <= 0.5 <= high
    assert hits >= 50


def test_healthy_against_healthy_gives_one_half_and_a_real_difference_does_not():
    rng = np.random.default_rng(2)
    low, high = interval(bootstrap([(random_scans(rng, 200), [])], "scan_auroc", 500))
    assert low < 0.5 < high
    low, high = interval(bootstrap([(random_scans(rng, 200, shift=1.5), [])], "scan_auroc", 500))
    assert low > 0.7


def test_models_on_the_same_subjects_share_their_resamples():
    rng = np.random.default_rng(3)
    one = random_scans(rng, shift=1)
    two = random_scans(rng)
    same = bootstrap([(one, [])], "scan_auroc", 200) - bootstrap(
        [(list(reversed(one)), [])], "scan_auroc", 200
    )
    assert np.abs(same).max() < 1e-12
    mean = bootstrap([(one, []), (two, [])], "scan_auroc", 200)
    apart = [bootstrap([(s, [])], "scan_auroc", 200) for s in (one, two)]
    np.testing.assert_allclose(mean, np.mean(apart, axis=0))


def test_folds_without_one_kind_do_not_spoil_the_mean():
    some = [scan(f"a{i}", "abnormal", 1.0) for i in range(5)] + [
        scan(f"b{i}", "healthy", 0.0) for i in range(5)
    ]
    none = [scan(f"c{i}", "healthy", 0.5) for i in range(5)]
    values = bootstrap([(some, []), (none, [])], "scan_auroc", 50)
    assert np.nanmin(values) == np.nanmax(values) == 1 and np.isfinite(values).sum() > 40
    assert np.isnan(bootstrap([(none, [])], "scan_auroc", 50)).all()


@pytest.mark.parametrize(
    ("ill", "well", "ranked", "dice", "alarms"),
    [(5, 5, 1, 1, 1), (4, 5, 0, 0, 1), (9, 4, 0, 1, 0), (1, 0, 0, 0, 0)],
)
def test_too_few_subjects_of_a_kind_give_no_interval(ill, well, ranked, dice, alarms):
    """Twenty scans of one patient are one subject, and one subject makes nothing certain."""
    scans = [lesion(f"a{i}", 1.0 + i, 0.5, 5, 10, 10) for i in range(ill)] + [
        scan(f"h{i}", "healthy", float(i)) for i in range(well)
    ]
    scans += [lesion("more", 0.1 * i, 0.2, 2, 10, 10) | {"subject": "a0"} for i in range(20)]
    for figure, wanted in (
        ("scan_auroc", ranked),
        ("dice_mean", dice),
        ("healthy_false_positive_ml", alarms),
    ):
        values = bootstrap([(scans, [])], figure, 100)
        assert np.isfinite(interval(values)).all() == bool(wanted), figure
