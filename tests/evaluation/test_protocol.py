"""The protocol's figures against hand-computed numbers, scikit-learn and chance."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation import protocol
from evaluation.metrics import VoxelHistogram
from evaluation.statistics import interval


def scan(name, label, score, **more):
    """A row as evaluation writes it; without a lesion mask unless told."""
    row = {"id": name, "subject": name, "label": label, "pathology": "", "score": score}
    row |= {"brain_voxels": 1000, "above_voxels": 10, "mask_voxels": 8, "false_positive_ml": 0.5}
    return row | more


def lesion(name, score, dice, overlap, mask, truth, **more):
    about = {
        "dice": dice,
        "overlap_voxels": overlap,
        "mask_voxels": mask,
        "truth_voxels": truth,
        "voxel_ap": dice / 2,
        "hd95": 3.0,
    }
    return scan(name, "abnormal", score, lesions=[], candidates=[], **(about | more))


def summary(scans, slices=(), voxels=None, at=0.5):
    return protocol.summarise(scans, list(slices), voxels or VoxelHistogram(), at)


def test_slices_count_by_the_two_readings_of_the_thesis():
    scans = [scan("a", "healthy", 0.4), scan("b", "abnormal", 0.9), scan("c", "", 0.7)]
    slices = [
        ("a/0", 0, 0.1),
        ("a/1", 0, 0.4),
        ("b/0", 0, 0.2),
        ("b/1", 1, 0.9),
        ("c/0", None, 5.0),
    ]
    figures = summary(scans, [{"id": i, "label": k, "score": s} for i, k, s in slices])
    assert (
        figures["slicewise_auroc"] == 1
    )  # 0.9 against 0.1 and 0.4; the healthy slice of the ill scan does not count
    assert figures["clinical_slicewise_auroc"] == 0.75  # 0.2 and 0.9 against 0.1 and 0.4
    assert (
        figures["scan_auroc"] == 1
        and figures["n_scans"] == 3
        and figures["n_healthy"] == figures["n_abnormal"] == 1
    )
    assert (
        np.isnan(figures["dice_mean"])
        and figures["healthy_false_positive_ml"] == 0.5
        and figures["healthy_voxel_fpr"] == 0.01
    )


def test_dice_is_averaged_over_scans_with_lesions_and_pooled_over_their_voxels():
    scans = [
        lesion("a", 0.9, 0.5, 50, 100, 100),
        lesion("b", 0.8, 0.1, 1, 10, 10),
        lesion("c", 0.1, 0.0, 0, 0, 30, hd95=None),
        scan("h", "healthy", 0.2, truth_voxels=0, dice=None),
    ]
    figures = summary(scans)
    assert figures["dice_mean"] == pytest.approx(0.2) and figures["voxel_ap_mean"] == pytest.approx(
        0.1
    )
    assert figures["dice_pooled"] == pytest.approx(2 * 51 / (200 + 20 + 30))
    assert (
        figures["hd95_mean"] == 3
        and figures["hd95_undefined"] == 1
        and figures["n_with_lesion_mask"] == 3
    )


def test_an_empty_truth_never_scores():
    only = [
        scan("h", "healthy", 0.2, truth_voxels=0, dice=None, mask_voxels=0),
        scan("g", "healthy", 0.3, truth_voxels=0, dice=None),
    ]
    figures = summary(only)
    assert (
        np.isnan(figures["dice_mean"])
        and np.isnan(figures["dice_pooled"])
        and np.isnan(figures["oracle_dice_pooled"])
    )
    assert all(
        np.isnan(figures[k]) for k in ("scan_auroc", "scan_ap", "f1", "accuracy", "oracle_f1")
    )


def test_the_operating_point_classifies_and_the_oracle_is_at_least_as_good():
    scans = [scan(f"h{i}", "healthy", s) for i, s in enumerate([0.1, 0.2, 0.6])] + [
        scan(f"a{i}", "abnormal", s) for i, s in enumerate([0.3, 0.8])
    ]
    figures = summary(scans, at=0.5)
    assert (
        figures["accuracy"] == pytest.approx(3 / 5)
        and figures["recall"] == 0.5
        and figures["precision"] == 0.5
    )
    assert figures["specificity"] == pytest.approx(2 / 3) and figures["f1"] == 0.5
    assert figures["oracle_f1"] == pytest.approx(0.8)  # above 0.25: two hits, one alarm
    assert np.isnan(figures["f1_share"]) and np.isnan(figures["f1_few_label"])
    other = protocol.summarise(
        scans, [], VoxelHistogram(), 0.5, {"share": 0.25, "few-label": 0.7, "conformal": 9.0}
    )
    assert (
        other["f1_share"] == pytest.approx(0.8)
        and other["precision_few_label"] == 1
        and other["recall_few_label"] == 0.5
    )
    assert other["accuracy_share"] == pytest.approx(4 / 5) and other["f1"] == 0.5


def test_classes_stand_against_all_healthy_scans():
    scans = [
        scan("h", "healthy", 0.5, pathology="ignored"),
        scan("x", "abnormal", 0.9, pathology="epidural+subdural"),
        scan("y", "abnormal", 0.1, pathology="subdural"),
    ]
    slices = [
        {"id": "h/0", "label": 0, "score": 0.5},
        {"id": "x/0", "label": 1, "score": 0.9},
        {"id": "y/0", "label": 1, "score": 0.1},
    ]
    rows = {r["class"]: r for r in protocol.classes(scans, slices, "pathology")}
    assert set(rows) == {"epidural", "subdural"}
    assert (
        rows["epidural"]["scan_auroc"] == 1
        and rows["subdural"]["scan_auroc"] == 0.5
        and rows["subdural"]["n"] == 2
    )
    assert rows["subdural"]["slicewise_auroc"] == 0.5 and rows["epidural"]["n_slices"] == 1


def test_classes_of_the_slice_table_count_their_own_slices():
    scans = [scan("h", "healthy", 0.2), scan("x", "abnormal", 0.9)]
    slices = [
        {"id": "h/0", "label": 0, "score": 0.2},
        {"id": "x/0", "label": 1, "score": 0.1, "bleed": "epidural"},
        {"id": "x/1", "label": 1, "score": 0.9, "bleed": "subdural"},
    ]
    rows = {r["class"]: r for r in protocol.classes(scans, slices, "bleed")}
    assert rows["epidural"]["slicewise_auroc"] == 0 and rows["subdural"]["slicewise_auroc"] == 1
    assert rows["epidural"]["scan_auroc"] == 1 and rows["epidural"]["n"] == 1


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
        many = [s for s, c in zip(scans, counts[b], strict=True) for _ in range(c)]
        y, score = [s["label"] == "abnormal" for s in many], [s["score"] for s in many]
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
            got = protocol.resampled(scans, [], figure, lambda name: counts[:, place[name]])
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
    got = protocol.resampled(scans, slices, "slicewise_auroc", weights.get)
    np.testing.assert_allclose(got, [1, 2 / 3])
    clinical = protocol.resampled(scans, slices, "clinical_slicewise_auroc", weights.get)
    np.testing.assert_allclose(clinical, [0.5, (2 + 0) / 6])


def test_shuffled_labels_give_one_half_within_the_interval():
    """Labels that mean nothing: the interval holds 0.5 about as often as it says."""
    rng, hits = np.random.default_rng(1), 0
    for trial in range(60):
        scans = random_scans(rng)
        low, high = interval(protocol.bootstrap([(scans, [])], "scan_auroc", 300, seed=trial))
        hits += low <= 0.5 <= high
    assert hits >= 50


def test_healthy_against_healthy_gives_one_half_and_a_real_difference_does_not():
    rng = np.random.default_rng(2)
    low, high = interval(protocol.bootstrap([(random_scans(rng, 200), [])], "scan_auroc", 500))
    assert low < 0.5 < high
    low, high = interval(
        protocol.bootstrap([(random_scans(rng, 200, shift=1.5), [])], "scan_auroc", 500)
    )
    assert low > 0.7


def test_models_on_the_same_subjects_share_their_resamples():
    rng = np.random.default_rng(3)
    one, two = random_scans(rng, shift=1), random_scans(rng)
    same = protocol.bootstrap([(one, [])], "scan_auroc", 200) - protocol.bootstrap(
        [(list(reversed(one)), [])], "scan_auroc", 200
    )
    assert np.abs(same).max() < 1e-12
    mean = protocol.bootstrap([(one, []), (two, [])], "scan_auroc", 200)
    apart = [protocol.bootstrap([(s, [])], "scan_auroc", 200) for s in (one, two)]
    np.testing.assert_allclose(mean, np.mean(apart, axis=0))


def test_folds_without_one_kind_do_not_spoil_the_mean():
    some = [scan(f"a{i}", "abnormal", 1.0) for i in range(5)] + [
        scan(f"b{i}", "healthy", 0.0) for i in range(5)
    ]
    none = [scan(f"c{i}", "healthy", 0.5) for i in range(5)]
    values = protocol.bootstrap([(some, []), (none, [])], "scan_auroc", 50)
    assert np.nanmin(values) == np.nanmax(values) == 1 and np.isfinite(values).sum() > 40
    assert np.isnan(protocol.bootstrap([(none, [])], "scan_auroc", 50)).all()


@pytest.mark.parametrize(
    ("ill", "well", "ranked", "dice", "alarms"),
    [(5, 5, 1, 1, 1), (4, 5, 0, 0, 1), (9, 4, 0, 1, 0), (1, 0, 0, 0, 0)],
)
def test_too_few_subjects_of_a_kind_give_no_interval(ill, well, ranked, dice, alarms):
    """Twenty scans of one patient are one subject: nothing may look certain because it was measured once."""
    scans = [lesion(f"a{i}", 1.0 + i, 0.5, 5, 10, 10) for i in range(ill)] + [
        scan(f"h{i}", "healthy", float(i)) for i in range(well)
    ]
    scans += [lesion("more", 0.1 * i, 0.2, 2, 10, 10) | {"subject": "a0"} for i in range(20)]
    for figure, wanted in (
        ("scan_auroc", ranked),
        ("dice_mean", dice),
        ("healthy_false_positive_ml", alarms),
    ):
        values = protocol.bootstrap([(scans, [])], figure, 100)
        assert np.isfinite(interval(values)).all() == bool(wanted), figure


def test_a_flipped_map_scores_badly():
    """The same map mirrored along an axis: Dice and voxel AP must fall, not hide."""
    from evaluation.metrics import dice

    truth = np.zeros((21, 34, 9), bool)
    truth[3:8, 5:12, 2:5] = True
    values = truth * 1.0 + 0.1 * np.random.default_rng(0).random(truth.shape)
    right, wrong = VoxelHistogram(), VoxelHistogram()
    right.update(values.ravel(), truth.ravel())
    wrong.update(values[::-1].ravel(), truth.ravel())
    assert dice(values > 0.5, truth) == 1 and right.average_precision() == 1
    assert dice(values[::-1] > 0.5, truth) == 0 and wrong.average_precision() < 1.5 * truth.mean()


def test_mean_and_sd():
    assert protocol.mean_and_sd([1.0, 3.0, None, float("nan")]) == (2.0, pytest.approx(2**0.5))
    assert protocol.mean_and_sd([5.0]) == (5.0, 0.0) and np.isnan(protocol.mean_and_sd([])[0])
