"""Checks, mutual information and Dice against independent values."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from preprocessing import quality
from preprocessing.scans import ScanError


def test_mutual_information_against_scikit_learn_and_its_limits():
    rng = np.random.default_rng(0)
    a = rng.normal(size=20000)
    b = a + rng.normal(0, 0.5, a.size)
    shares = np.linspace(0, 1, 33)[1:-1]
    bins = [np.digitize(v, np.quantile(v, shares)) for v in (a, b)]
    assert quality.mutual_information(a, b) == pytest.approx(mutual_info_score(*bins), abs=1e-9)
    one_to_one = quality.mutual_information(a, -(a**3))
    assert one_to_one == pytest.approx(np.log(32), abs=0.01)
    assert quality.mutual_information(a, rng.permutation(a)) < 0.03
    assert quality.mutual_information(np.zeros(100), a[:100]) == 0


def test_checks_measure_and_say_what_was_expected():
    mask = np.zeros((60, 50, 40), bool)
    mask[10:30, 10:40, 0:35] = True
    volume, cut, touch = quality.brain_checks(mask, (2, 2, 3), (600, 2300))
    assert volume.value == pytest.approx(20 * 30 * 35 * 12 / 1000) and not volume.passed
    assert cut.value == pytest.approx(20 * 30 / mask.sum() ** (2 / 3)) and cut.passed
    assert not touch.passed and not touch.hard
    with pytest.raises(ScanError, match="brain volume is 252 ml, expected 600 to 2300 ml"):
        quality.demand([volume, cut, touch])
    assert quality.flags([touch])[0].startswith("brain touches the border of the scan")
    bad = quality.image_checks(np.array([1.0, np.nan, 3, 4]), "t1", (100, 200, 200))
    assert bad[0].value == 0.25 and not bad[0].passed
    for values, passed in (([0.0, 4000], True), ([30.0, 35], False)):
        checks = quality.image_checks(np.array(values), "ct", (200, 200, 150))
        by_name = {c.name: c.passed for c in checks}
        assert by_name["lowest value"] == by_name["highest value"] == passed


def test_dice_by_hand():
    a = np.zeros(10, bool)
    b = np.zeros(10, bool)
    a[:4] = True
    b[2:8] = True
    assert quality.dice(a, b) == pytest.approx(2 * 2 / 10)
    assert quality.dice(np.zeros(3, bool), np.zeros(3, bool)) == 0


def test_a_ct_with_1024_added_is_named_as_not_in_hu():
    hu = np.full((40, 40, 40), -1000.0)
    hu[8:32, 8:32, 8:32] = 35  # 13,824 voxels of 0.125 ml
    hu[8:12, 8:32, 8:32] = 1000  # bone
    extent = (200, 200, 200)
    assert all(c.passed for c in quality.image_checks(hu, "ct", extent))
    for added in (1000, 1024):
        stored = hu + added
        stored[:3] = 0
        with pytest.raises(ScanError, match=r"the values are not in HU: .* rescale intercept"):
            quality.demand(quality.image_checks(stored, "ct", extent))
