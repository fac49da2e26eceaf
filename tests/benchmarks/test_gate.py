"""Whom the gate warns of: folds by subject, and shares counted by hand."""

from pathlib import Path

import pytest
from scipy.stats import binomtest

from benchmarks.gate import FOLDS, NOT_SCORED, folds_of, judged, packed, summary, unpacked
from pipelines.detect.typical import Typical
from tests.conftest import case_of


def test_scans_of_a_subject_are_judged_by_a_gate_that_knows_none_of_them():
    cases = []
    for number in range(12):
        subject = f"s{number}"
        cases.append(case_of(subject, Path("x"), subject=subject, label="healthy"))
        cases.append(case_of(f"{subject}_dark", Path("x"), subject=subject, label="abnormal"))
    cases += [case_of(f"p{n}", Path("x"), subject=f"p{n}", label="abnormal") for n in range(10)]
    found = folds_of(cases)
    for healthy, planted in zip(found[:24:2], found[1:24:2], strict=True):
        assert healthy == planted
    healthy = found[:24:2]
    assert sorted(healthy.count(fold) for fold in range(FOLDS)) == [2, 2, 2, 3, 3]
    assert sorted(found[24:].count(fold) for fold in range(FOLDS)) == [2] * FOLDS
    assert folds_of(cases) == found


def row(label, shift, verdict):
    return {"scan": "a", "label": label, "shift": shift, "verdict": verdict}


def test_warned_and_refused_scans_are_counted_with_an_exact_interval():
    warning = "scored with warning"
    rows = [row("healthy", "", "scored")] * 9 + [row("healthy", "", warning)]
    rows += [row("abnormal", "", "scored")] * 4
    rows += [row("healthy", "noise", warning), row("healthy", "blur", "scored")]
    rows += [row("healthy", "blur", NOT_SCORED)]
    found = summary(rows)
    interval = binomtest(1, 10).proportion_ci(0.95, method="exact")
    assert found["healthy"] == pytest.approx(
        {"n": 10, NOT_SCORED: 0, "rate": 0.1, "low": interval.low, "high": interval.high}
    )
    assert (found["abnormal"]["n"], found["abnormal"]["rate"]) == (4, 0)
    assert found["shifted"]["rate"] == pytest.approx(2 / 3)
    assert found["by shift"]["blur"]["rate"] == 0.5 and found["by shift"]["blur"][NOT_SCORED] == 1


def test_a_row_with_features_is_judged_again_and_one_without_stays():
    known = Typical(features={"noise": [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16]}, histogram=[])
    far = {"scan": "a", "shift": "noise", "verdict": "scored", "features": {"noise": 0.9}}
    found = judged(far, known)
    assert (found["verdict"], found["reason"], found["p_value"]) == (
        "scored with warning",
        "noise",
        0.125,
    )
    assert found["features"] == far["features"]
    lost = {"scan": "b", "shift": "motion", "verdict": NOT_SCORED, "reason": "why"}
    assert judged(lost, known) == lost


def test_a_file_names_features_once_and_gives_the_rows_back():
    rows = [
        {"scan": "a", "features": {"noise": 0.1, "sharpness": 0.3}},
        {"scan": "b", "features": {"noise": 0.0}, "verdict": "scored"},
        {"scan": "c", "verdict": NOT_SCORED},
        {"scan": "d", "features": {"sharpness": 0.2, "echo": 1.5}},
    ]
    content = packed(rows)
    assert content["features"] == ["noise", "sharpness", "echo"]
    found = [row.get("features") for row in content["scans"]]
    assert found == [[0.1, 0.3, None], [0.0, None, None], None, [None, 0.2, 1.5]]
    assert unpacked(content) == rows
