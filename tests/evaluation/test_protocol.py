"""The protocol's figures against hand-computed numbers."""

import numpy as np
import pytest

from evaluation import protocol
from evaluation.metrics import VoxelHistogram, dice
from tests.evaluation.records import lesion, scan


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
    # 0.9 against 0.1 and 0.4; the healthy slice of the ill scan does not count
    assert figures["slicewise_auroc"] == 1
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


def test_peaks_are_counted_over_scans_with_a_lesion():
    scans = [
        lesion("a", 0.9, 0.5, 50, 100, 100, peak_mm=0.0),
        lesion("b", 0.8, 0.1, 1, 10, 10, peak_mm=30.0),
        lesion("c", 0.8, 0.1, 1, 10, 10, peak_mm=5.0),
        lesion("d", 0.1, 0.0, 0, 0, 30, peak_mm=None),
    ]
    figures = summary(scans)
    assert figures["peak_in_lesion"] == pytest.approx(1 / 3) and figures["peak_mm"] == 5
    before = summary([lesion("a", 0.9, 0.5, 50, 100, 100)])
    assert np.isnan(before["peak_in_lesion"]) and np.isnan(before["peak_mm"])


def test_pixel_ap_counts_background_healthy_scans_and_lesions_outside_the_brain():
    scans = [
        lesion("a", 0.9, 0.5, 50, 100, 3),  # two lesion voxels in the brain, one outside
        scan("h", "healthy", 0.2),
    ]
    voxels = VoxelHistogram()
    voxels.update(np.array([0.9, 0.5, 0.4, 0.0]), np.array([1, 0, 1, 0]))
    others = VoxelHistogram()
    others.update(np.array([0.6, 0.0, 0.0]), np.zeros(3, int))
    figures = protocol.summarise(scans, [], voxels, 0.5, others=others)
    # ranked 0.9 (1), 0.6 (0), 0.5 (0), 0.4 (1), then 0 with one lesion voxel among four
    assert figures["pixel_ap"] == pytest.approx((1 + 2 / 4 + 3 / 8) / 3)
    assert figures["voxel_ap"] == pytest.approx((1 + 2 / 3) / 2)
    before = protocol.summarise(scans, [], voxels, 0.5)
    assert np.isnan(before["pixel_ap"]), "a file of before has no such voxels"
    healthy = protocol.summarise(scans[1:], [], VoxelHistogram(), 0.5, others=others)
    assert np.isnan(healthy["pixel_ap"])


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


def test_a_flipped_map_scores_badly():
    """The same map mirrored along an axis: Dice and voxel AP must fall, not hide."""
    truth = np.zeros((21, 34, 9), bool)
    truth[3:8, 5:12, 2:5] = True
    values = truth * 1.0 + 0.1 * np.random.default_rng(0).random(truth.shape)
    right = VoxelHistogram()
    wrong = VoxelHistogram()
    right.update(values.ravel(), truth.ravel())
    wrong.update(values[::-1].ravel(), truth.ravel())
    assert dice(values > 0.5, truth) == 1 and right.average_precision() == 1
    assert dice(values[::-1] > 0.5, truth) == 0 and wrong.average_precision() < 1.5 * truth.mean()


def test_mean_and_sd():
    assert protocol.mean_and_sd([1.0, 3.0, None, float("nan")]) == (2.0, pytest.approx(2**0.5))
    assert protocol.mean_and_sd([5.0]) == (5.0, 0.0) and np.isnan(protocol.mean_and_sd([])[0])


def findings(*scores, true=False):
    return [{"volume_ml": 1.0, "score": score, "true": true} for score in scores]


def found(volume_ml, strength):
    return {"volume_ml": volume_ml, "covered": 0.5, "score": strength, "strength": strength}


def test_lesions_found_at_a_rate_of_false_findings_by_hand():
    """Four scans: false findings of strength 9, 8, 7, 6, 5 and 4; lesions of 8.5, 6, 3 and 0."""
    ill = lesion("a", 1.0, 0.5, 10, 20, 20)
    ill |= {"lesions": [found(0.5, 8.5), found(2.0, 6.0)]}
    ill |= {"outlined": findings(9, 5) + findings(8.5, 6, true=True)}
    also = lesion("b", 1.0, 0.5, 10, 20, 20)
    also |= {"lesions": [found(4.0, 3.0), found(1.0, 0.0)], "outlined": findings(8, 4, 6)}
    well = scan("c", "healthy", 0.1, truth_voxels=0, lesions=[], candidates=[])
    scans = [ill, also, well | {"outlined": findings(7)}, well | {"id": "d", "outlined": []}]
    # let through at most: 0 of 4 scans' findings, 2, 4, and all
    assert [protocol.found_at(scans, rate) for rate in (0.1, 0.5, 1.0, 5)] == [0, 0.25, 0.5, 0.75]
    assert protocol.found_at(scans, 1.0, least_ml=1.0) == pytest.approx(1 / 3)
    shown = summary(scans)
    assert (shown["found_at_1"], shown["found_at_0_1"]) == (0.5, 0)
    assert [one["score"] for one in protocol.strong_above(scans, 1.0)] == [8.5, 6.0, 0, 0]


def test_lesions_found_at_a_rate_are_unknown_to_older_files():
    old = lesion("a", 1.0, 0.5, 10, 20, 20) | {"lesions": [{"volume_ml": 1.0, "score": 2.0}]}
    for scans in ([old], [], [scan("c", "healthy", 0.1, truth_voxels=0, lesions=[])]):
        assert np.isnan(protocol.found_at(scans, 1.0))
