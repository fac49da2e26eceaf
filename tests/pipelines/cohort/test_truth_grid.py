"""Truth lies on its scan's grid, within half a voxel; else the sentence says how far off."""

import nibabel as nib
import numpy as np
import pytest

from pipelines.cohort.cases import read_truth
from preprocessing.images import Grid
from preprocessing.scans import ScanError
from tests.conftest import case_of

HOME = Grid((20, 24, 12), np.array([[-1.0, 0, 0, 9], [0, 1, 0, 4], [0, 0, 3, 2], [0, 0, 0, 1.0]]))


def truth(folder, shift, shape=HOME.shape, value=1.0):
    """A case whose truth mask is shifted by some mm along the first axis."""
    affine = HOME.affine.copy()
    affine[0, 3] += shift
    data = np.full(shape, np.nan, np.float32)
    data[3:6, 4:8, 2:5] = value
    nib.save(nib.Nifti1Image(data, affine), folder / "mask.nii.gz")
    files = {name: name for name in ("preproc", "brain", "sidecar")}
    return case_of("a", folder, mask="mask.nii.gz", label="abnormal", **files)


@pytest.mark.parametrize("shift", [0, 0.02, -0.49])
def test_truth_below_half_a_voxel_off_is_taken_and_nan_is_none(tmp_path, shift):
    labels = read_truth(truth(tmp_path, shift), HOME)
    assert labels.sum() == 3 * 4 * 3 and set(np.unique(labels)) == {0, 1}


def test_truth_farther_off_is_refused_with_the_distance(tmp_path):
    with pytest.raises(
        ScanError, match=r"mask\.nii\.gz: its affine lays voxels up to 0\.7 mm .* less than 0\.5 mm"
    ):
        read_truth(truth(tmp_path, 0.7), HOME)
    with pytest.raises(ScanError, match=r"shape \(20, 24, 13\) differs from the scan's, \(20, 24"):
        read_truth(truth(tmp_path, 0, (20, 24, 13)), HOME)
