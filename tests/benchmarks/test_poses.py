"""Errors that the poses measured let one expect, against numbers drawn from a known law."""

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.poses import RIGHT, expected


def heads(pose, logs):
    return [{"pose": pose, "over_others": float(np.exp(value))} for value in logs]


def test_expected_errors_are_the_tails_beyond_the_limit():
    levels = norm.ppf((np.arange(4000) + 0.5) / 4000)  # a normal sample without chance
    rows = heads(RIGHT, 1.0 + 0.3 * levels) + heads("upside down", -1.0 + 0.5 * levels)
    rows.append({"pose": RIGHT, "not measured": "no brain"})
    found = expected(rows, limit=1.3)
    assert found[RIGHT]["share"] == pytest.approx(norm.cdf((np.log(1.3) - 1.0) / 0.3), rel=0.02)
    assert found["wrong"]["share"] == pytest.approx(norm.sf((np.log(1.3) + 1.0) / 0.5), rel=0.02)
    assert found[RIGHT]["p normal"] > 0.9


def test_few_heads_have_no_spread():
    assert expected(heads(RIGHT, [1.0, 1.1]), 1.3) == {RIGHT: None, "wrong": None}
