"""Intensities against hand-made truth."""

import numpy as np
import pytest

from preprocessing import intensity
from preprocessing.scans import ScanError


def test_ct_window_is_fixed_and_mr_percentiles_are_of_the_brain():
    mask = np.zeros((4, 5, 6), bool)
    mask[1:3, 1:4, 1:5] = True
    hu = np.full(mask.shape, 40.0)
    hu[1, 1, 1:4] = (-50, 20, 300)
    shown = intensity.window(hu, mask, 0, 80)
    assert shown[1, 1, 1:4].tolist() == [0, 0.25, 1] and shown[2, 2, 2] == 0.5
    assert not shown[~mask].any() and shown.dtype == np.float32
    rng = np.random.default_rng(0)
    mr = rng.normal(500, 50, mask.shape)
    mr[~mask] = 1e6  # fat outside must not matter
    low, high = np.sort(mr[mask])[[0, -1]]
    whole = intensity.percentiles(mr, mask, 0, 100)
    np.testing.assert_allclose(whole[mask], (mr[mask] - low) / (high - low), atol=1e-6)
    one = intensity.percentiles(mr, mask, 1, 99)
    other = intensity.percentiles(mr * 7 + 3, mask, 1, 99)
    np.testing.assert_allclose(other, one, atol=1e-5)
    roomy = intensity.percentiles(mr, mask, 1, 50, 0.6)
    assert np.median(roomy[mask]) == pytest.approx(0.6, abs=1e-3)
    assert roomy.max() <= 1 and (roomy[mask] > 0.6).any()
    with pytest.raises(ScanError, match="constant"):
        intensity.percentiles(np.full(mask.shape, 7.0), mask, 1, 99)
