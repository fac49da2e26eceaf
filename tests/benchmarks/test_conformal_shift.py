"""Realised false-alarm rates: on made-up scans, and those that the docs name."""

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks.conformal_shift import rate, realised, stressed, tilted
from pipelines.config import ROOT
from pipelines.study.stress import Row
from preprocessing.files import read_json


def test_the_interval_is_that_of_clopper_and_pearson():
    for found in (0, 7, 50):
        expected = binomtest(found, 50).proportion_ci(0.95, method="exact")
        got = rate(found, 50)
        assert (got["low"], got["high"]) == pytest.approx((expected.low, expected.high))


def test_a_tilt_moves_a_normal_score_by_so_many_standard_deviations():
    scores = np.random.default_rng(0).normal(5, 2, 20_000)
    weights = tilted(scores, 0.5)
    assert np.average(scores, weights=weights) == pytest.approx(6, abs=0.06)


def test_exchangeable_scans_keep_the_promise_and_shifted_ones_only_by_weights():
    strongest = np.random.default_rng(1).gamma(2, 1, 60)
    same = realised(strongest, np.ones(60), 39, 0.1, 1000)
    assert same["plain"] == same["weighted"] and same["silent"] == 0
    assert same["plain"]["low"] <= 0.1 <= same["plain"]["high"]
    shifted = realised(strongest, tilted(strongest, 0.7), 39, 0.1, 1000)
    assert shifted["plain"]["low"] > 0.2 and shifted["weighted"]["high"] < 0.12


def test_stressed_scans_are_counted_by_shift():
    about = {"run": "r", "shift": "noise", "severity": 1}
    rows = [Row(**about, scan=f"s{i}", verdict="scored", findings=i % 2) for i in range(10)]
    rows.append(Row(**about, scan="x", verdict="not scored"))
    rows[0] = rows[0].model_copy(update={"verdict": "scored with warning"})
    (row,) = stressed(rows, 500)
    assert (row["scored"], row["rate"], row["warned"]) == (10, 0.5, 0.1)
    assert 0.1 <= row["low"] < 0.5 < row["high"] <= 0.9


def test_the_docs_say_what_was_measured():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    found = read_json(ROOT / "docs" / "results" / "conformal_shift.json")
    for run in found["runs"]:
        rows = [(0, run["exchangeable"]), *[(row["tilt"], row) for row in run["tilted"]]]
        for tilt, row in rows:
            cells = [f"{row[name]['rate']:.1%}" for name in ("plain", "weighted")]
            line = (
                f"| `{run['model']}` | {tilt:g} | {cells[0]} | {cells[1]} | {row['silent']:.1%} |"
            )
            assert line in page
        assert f"{run['promised']:.1%}" in page
