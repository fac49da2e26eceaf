"""The gate: one p-value for a scan as a whole, right for scans of the same kind."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from pipelines.detect.gate import ALPHA, fit, gate_flags, judge
from pipelines.detect.points import Point, promise_for
from pipelines.detect.typical import Typical

NAMES = ("noise", "sharpness", "mean intensity", "brain volume, ml")


def features(rng, count):
    """Features (count, 4) of scans of one kind: correlated, each on its own scale."""
    mixed = rng.normal(size=(count, 4)) @ np.array(
        [[1, 0.8, 0, 0], [0, 0.6, 0, 0], [0, 0, 1, 0], [0, 0, 0.3, 1]]
    )
    return mixed * (0.01, 0.2, 0.05, 120) + (0.03, 1.5, 0.5, 1400)


def typical_of(rows):
    by_name = {name: rows[:, i].tolist() for i, name in enumerate(NAMES)}
    return Typical(features=by_name, histogram=[])


def of_scan(row):
    return dict(zip(NAMES, row, strict=True))


def test_the_distance_is_mahalanobis_and_its_parts_add_up():
    rows = features(np.random.default_rng(0), 40_000)
    own = rows[0] + np.array([0.02, -0.4, 0.1, 0])
    parts = fit(rows).parts(own)
    expected = mahalanobis(own, rows.mean(0), np.linalg.inv(np.cov(rows.T)))
    assert np.sqrt(parts.sum()) == pytest.approx(expected, rel=0.01)  # hardly shrunk: many scans


def test_scans_of_the_same_kind_are_called_unlike_no_more_often_than_promised():
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(200):
        rows = features(rng, 21)
        p_values.append(judge(typical_of(rows[1:]), of_scan(rows[0])).p_value)
    # 200 draws: three standard deviations above 5 and 20 %
    assert np.mean(np.array(p_values) <= ALPHA) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(np.array(p_values) <= 0.2) <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / 200)
    assert np.mean(np.array(p_values) <= 0.5) > 0.4  # and it is not merely timid


def test_a_shift_of_one_feature_is_seen_and_named():
    rows = features(np.random.default_rng(2), 20)
    own = rows.mean(0) + np.array([0, 0, 0.4, 0])
    gate = judge(typical_of(rows), of_scan(own))
    assert (gate.verdict, gate.p_value) == ("scored with warning", round(1 / 21, 4))
    assert gate.because[0] == "mean intensity"
    (said,) = gate_flags(gate)
    assert "as a whole unlike the training scans (p 0.048" in said
    plain = judge(typical_of(rows), of_scan(rows.mean(0)))
    assert (plain.verdict, plain.because, gate_flags(plain)) == ("scored", [], [])


def test_a_correlation_that_is_broken_is_seen_though_each_feature_is_within_its_range():
    rows = features(np.random.default_rng(3), 60)
    low, high = np.percentile(rows, (4, 96), axis=0)
    own = rows.mean(0)
    own[:2] = high[0], low[1]  # noise and sharpness rise together in these scans
    assert ((rows.min(0) < own) & (own < rows.max(0))).all()
    assert judge(typical_of(rows), of_scan(own)).because


def test_a_feature_that_never_varies_may_differ_by_rounding_and_no_more():
    rows = features(np.random.default_rng(4), 20)
    typical = typical_of(rows)
    typical.features["voxel side"] = [0.868] * 20
    same = of_scan(rows.mean(0))
    assert not judge(typical, same | {"voxel side": 0.8681}).because
    assert judge(typical, same | {"voxel side": 3.0}).because[0] == "voxel side"


def test_the_rounding_of_a_header_makes_no_scan_unlike():
    """Voxel sides that differ by a millionth: four times that is no other scanner, 10 % is."""
    rows = features(np.random.default_rng(4), 20)
    rows[:, 3] = 1 + 1e-6 * (np.arange(20) % 2)
    usual = rows.mean(0)
    plain, odd, thick = (usual + np.array([0, 0, 0, more]) for more in (0, 4e-6, 0.1))
    known = typical_of(rows)
    assert judge(known, of_scan(odd)).distance == pytest.approx(
        judge(known, of_scan(plain)).distance, abs=0.01
    )
    assert judge(known, of_scan(thick)).because[0] == NAMES[3]


def test_few_scans_and_older_runs_give_what_they_can():
    rows = features(np.random.default_rng(5), 20)
    assert judge(typical_of(rows[:5]), of_scan(rows[0])) is None
    known = judge(typical_of(rows), of_scan(rows[0]) | {"a feature of a later version": 3.0})
    assert known == judge(typical_of(rows), of_scan(rows[0]))


def test_the_promise_is_taken_back_for_a_scan_that_is_unlike_and_for_no_other():
    rows = features(np.random.default_rng(2), 20)
    unlike = judge(typical_of(rows), of_scan(rows.mean(0) + np.array([0, 0, 0.4, 0])))
    like = judge(typical_of(rows), of_scan(rows.mean(0)))
    at = Point(point="finding", promise="At most one in ten.")
    assert promise_for(at, like) == promise_for(at, None) == "At most one in ten."
    said = promise_for(at, unlike)
    assert said.startswith("Not promised for this scan: as a whole it is unlike those")
    assert "most of all: mean intensity" in said and said.endswith("). At most one in ten.")
    assert promise_for(Point(point="fixed"), unlike) == ""
