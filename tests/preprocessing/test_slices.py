"""The slice store: what is dropped, read back, sent to workers and exported."""

import pickle

import nibabel as nib
import numpy as np
import pytest

from preprocessing import slices
from preprocessing.scans import InputError


def store(tmp_path, shape=(9, 7, 11)):
    """A slice store of two scans that share a volume: image, brain, and the slices they hold."""
    rng = np.random.default_rng(0)
    image = rng.random(shape).astype(np.float32)
    mask = np.zeros(shape, bool)
    mask[2:7, 2:5, 3:9] = True  # 15 pixels on six slices
    mask[2, 2, 9] = True  # one pixel: too few
    z = slices.select(mask, 10)
    rows = []
    for scan, split, places in (("sub-01", "train", z[:4]), ("sub-02", "val", z[4:])):
        slices.write_arrays(tmp_path, scan, image * mask, mask, places)
        row = {"scan": scan, "subject": scan, "split": split, "brain_px": 15}
        rows += [row | {"row": i, "z": k} for i, k in enumerate(places)]
    slices.write_index(tmp_path, rows)
    return image * mask, mask, z


def test_slices_with_too_little_brain_are_dropped_and_the_rest_reads_back(tmp_path):
    image, mask, z = store(tmp_path)
    assert z.tolist() == [3, 4, 5, 6, 7, 8]
    val = slices.SliceStore(tmp_path, {"sub-02"})
    assert len(val) == 2 and len(slices.SliceStore(tmp_path)) == 6
    np.testing.assert_allclose(val[1]["image"][0], image[:, :, 8], atol=1e-3)
    np.testing.assert_array_equal(val[1]["mask"][0], mask[:, :, 8])
    assert [val[i]["z"] for i in range(2)] == [7, 8]
    assert val[0]["image"].dtype == np.float16 and val[0]["mask"].dtype == np.uint8
    stored = tmp_path / "sub-02_image.npy"
    stored.write_bytes(stored.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"sub-02_image\.npy: ends before slice 1; delete it"):
        slices.SliceStore(tmp_path)[5]
    with pytest.raises(InputError, match=r"index\.tsv.*make preprocess"):
        slices.SliceStore(tmp_path / "elsewhere")


def test_slice_store_travels_to_loader_workers(tmp_path):
    store(tmp_path)
    sent = slices.SliceStore(tmp_path, {"sub-01"})
    arrived = pickle.loads(pickle.dumps(sent))
    np.testing.assert_array_equal(arrived[3]["image"], sent[3]["image"])


def test_exported_slices_lie_where_they_were(tmp_path):
    image, _, z = store(tmp_path)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 4, 7], [0, 0, 0, 1]])
    slices.export_nifti(tmp_path / "nifti", "sub-01", image, affine, z)
    one = nib.load(tmp_path / "nifti" / "sub-01_slice-005.nii.gz")
    assert one.shape == (9, 7, 1) and len(list((tmp_path / "nifti").iterdir())) == 6
    np.testing.assert_allclose(one.get_fdata()[:, :, 0], image[:, :, 5], atol=1e-6)
    np.testing.assert_allclose(one.affine @ [3, 2, 0, 1], affine @ [3, 2, 5, 1])
