"""How far apart two poses are, by hand."""

import sys

import numpy as np
import pytest

from benchmarks import pose_repeats
from preprocessing.register import Atlas
from preprocessing.scans import InputError


def test_distances_between_two_poses_by_hand():
    brain = np.zeros((24, 8, 8), bool)
    brain[[0, 16], 0, 0] = True
    affine = np.diag([2.0, 1, 1, 1])  # points at x = 0 and 32 mm
    atlas = Atlas("any", brain.astype(np.float32), brain, affine)
    shifted = np.eye(4)
    shifted[:3, 3] = 3, 0, 4
    turned = np.diag([-1.0, -1, 1, 1])
    np.testing.assert_allclose(pose_repeats.distances(np.eye(4), shifted, atlas), [5, 5])
    np.testing.assert_allclose(pose_repeats.distances(np.eye(4), turned, atlas), [0, 64])


def test_summary_by_hand():
    about = {"set": "s", "modality": "t1"}
    rows = [about | {"mean mm": value} for value in (0.5, 0.25, 2.0)]
    rows.append(about | {"not measured": "no brain"})
    found = pose_repeats.summary(rows)["s, t1"]
    assert (found["n"], found["not measured"]) == (3, 1)
    assert found["median of means, mm"] == pytest.approx(0.5)
    assert found["largest mean, mm"] == 2.0


def test_a_folder_without_a_public_set_is_no_measurement(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    line = ["pose_repeats", "--data", str(tmp_path / "nowhere"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(InputError, match=r"nowhere: no folder of a public set .* ct_ich, ds002748"):
        pose_repeats.main()
    assert not out.exists()
