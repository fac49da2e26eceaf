"""False findings by groups of healthy scans, by hand and against scipy."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from evaluation.groups import healthy_groups


def scan(number, findings, ml, label="healthy", **columns):
    return {
        "id": str(number),
        "label": label,
        "findings": findings,
        "false_positive_ml": ml,
    } | columns


def test_groups_by_a_word():
    scans = [
        scan(1, 0, 0.0, sex="F"),
        scan(2, 2, 3.0, sex="F"),
        scan(3, 1, 5.0, sex="M"),
        scan(4, 9, 9.0, sex="M", label="abnormal"),  # not healthy
        scan(5, 9, 9.0),  # nobody knows
    ]
    women, men = healthy_groups(scans, "sex")
    assert women == {
        "group": "F",
        "n": 2,
        "healthy_with_finding": 0.5,
        "false_findings": 1.0,
        "false_positive_ml": 1.5,
    }
    assert (men["group"], men["n"], men["false_positive_ml"]) == ("M", 1, 5.0)
    assert healthy_groups(scans[:2], "sex") == []  # one group is no comparison


def test_numbers_are_parted_at_the_median_and_have_a_trend():
    rng = np.random.default_rng(0)
    ages = rng.permutation(np.arange(20, 61))
    ml = ages / 10 + rng.normal(0, 1, ages.size)
    scans = [
        scan(i, int(m > 4), m, age=str(a)) for i, (a, m) in enumerate(zip(ages, ml, strict=True))
    ]
    young, old, trend = healthy_groups(scans, "age")
    assert (young["group"], young["n"]) == ("up to 40", 21)
    assert (old["group"], old["n"]) == ("above 40", 20)
    assert old["false_positive_ml"] == pytest.approx(ml[ages > 40].mean())
    assert old["healthy_with_finding"] == pytest.approx((ml[ages > 40] > 4).mean())
    expected = spearmanr(ages, ml)
    assert (trend["rho"], trend["p"]) == pytest.approx((expected.statistic, expected.pvalue))


def test_few_numbers_are_groups_and_few_scans_have_no_trend():
    scans = [scan(i, 0, float(i), spacing_mm=1.0 + (i % 2)) for i in range(6)]
    assert [row["group"] for row in healthy_groups(scans, "spacing_mm")] == ["1.0", "2.0"]
    scans = [scan(i, 0, float(i), brain_ml=float(i)) for i in range(6)]
    assert [row["group"] for row in healthy_groups(scans, "brain_ml")] == ["up to 2.5", "above 2.5"]
    old = [scan(i, None, float(i), brain_ml=float(i)) for i in range(6)]
    assert np.isnan(healthy_groups(old, "brain_ml")[0]["false_findings"])
