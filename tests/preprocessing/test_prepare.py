"""Brain masks, intensities, checks and the slice store against hand-made truth."""

import nibabel as nib
import numpy as np
import pytest

from preprocessing import brain, intensity, quality, slices
from preprocessing.scans import InputError, ScanError


def ellipsoid(shape, centre, radii):
    grid = np.indices(shape).astype(float)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1


def ct_phantom(hole=False):
    """A 2 mm head in HU: air, scalp, skull, brain with a calcified plexus and a bleed; optionally thin bone at one side."""
    shape, centre = (100, 120, 90), (50, 60, 45)
    hu = np.full(shape, -1000, np.float32)
    hu[ellipsoid(shape, centre, (42, 52, 40))] = 60
    hu[ellipsoid(shape, centre, (37, 47, 36))] = 900
    inside = ellipsoid(shape, centre, (34, 44, 33))
    hu[inside] = 35
    hu[ellipsoid(shape, (50, 45, 45), (3, 3, 3))] = 300
    hu[ellipsoid(shape, (62, 70, 50), (6, 6, 6))] = 75
    if hole:
        hu[83:92, 57:63, 42:48] = 60
    return hu, inside


@pytest.mark.parametrize("hole", [False, True])
def test_bone_and_scalp_leave_a_ct_mask_and_calcifications_stay(hole):
    hu, inside = ct_phantom(hole)
    leaky = hu > 0  # the whole head, as a mask that leaked could be
    mask = brain._inside_skull(leaky, hu)
    leak = (mask & ~inside).sum()
    assert (
        leak == 0 if not hole else leak < 0.005 * inside.sum()
    )  # at most a stub in the gap, never the scalp
    assert not mask[:, :, 45][
        ellipsoid((100, 120), (50, 60), (42, 52)) & ~ellipsoid((100, 120), (50, 60), (39, 49))
    ].any()
    assert mask[50, 45, 45] and mask[62, 70, 50]
    assert mask.sum() > 0.75 * inside.sum()  # two voxels beside bone are given up
    if hole:
        assert (leaky & (hu == 60) & ~inside).any()


def test_voxels_that_share_bone_leave_a_ct_mask_and_fresh_blood_at_the_skull_stays():
    """A layer of partial volume at the skull and a splinter apart from it go; a bleed of 75 HU as near to the skull does not."""
    hu, inside = ct_phantom()
    layer = inside & ~ellipsoid(hu.shape, (50, 60, 45), (32, 42, 31))
    blood = ellipsoid(hu.shape, (50, 20, 45), (8, 8, 8)) & inside
    hu[layer & ~blood], hu[blood] = 95, 75
    splinter = ellipsoid(hu.shape, (78, 60, 45), (2, 3, 3))
    hu[splinter] = 400
    mask = brain._inside_skull(inside, hu)
    assert (hu[mask] < 90).mean() == 1 - (mask & (hu == 300)).sum() / mask.sum() and (
        mask & (hu == 300)
    ).any()  # but for the plexus
    assert not (mask & splinter).any() and (mask & blood).sum() > 0.6 * blood.sum()
    assert mask.sum() > 0.65 * inside.sum()


def test_a_ct_mask_that_reaches_into_the_air_is_cut_back_and_air_inside_the_brain_stays():
    hu, inside = ct_phantom()
    pocket = ellipsoid(hu.shape, (40, 60, 45), (4, 4, 4))
    hu[pocket] = -900
    mask = brain._inside_skull(np.ones_like(inside), hu)  # a mask of everything
    assert not (mask & ~inside).any() and mask[pocket].all()


def test_bone_is_what_the_ct_recipe_blanks_before_deepbet():
    shown = brain._soft_tissue(np.array([-1000.0, -20, 0, 35, 80, 95, 99.9, 100, 1500]))
    np.testing.assert_array_equal(shown, [0, 0, 0, 35, 80, 80, 80, 0, 0])


def test_stripped_scans_are_recognised_by_background_and_volume():
    shape, affine = (100, 120, 90), np.diag([2.0, 2, 2, 1])
    inside = ellipsoid(shape, (50, 60, 45), (34, 44, 33))  # 1.65 litres
    rng = np.random.default_rng(0)
    t1 = np.where(inside, rng.normal(800, 60, shape), 0).astype(np.float32)
    assert brain.is_stripped(nib.Nifti1Image(t1, affine))
    assert brain.is_stripped(
        nib.Nifti1Image(np.where(inside, t1 / 20, -1024).astype(np.float32), affine)
    )
    head, _ = ct_phantom()
    assert not brain.is_stripped(nib.Nifti1Image(head, np.diag([2.4, 2.4, 2.4, 1])))
    noisy = t1 + np.abs(rng.normal(0, 5, shape)).astype(np.float32)
    assert not brain.is_stripped(nib.Nifti1Image(noisy, affine))
    two = np.where(
        ellipsoid(shape, (25, 60, 45), (20, 40, 30)) | ellipsoid(shape, (75, 60, 45), (20, 40, 30)),
        5,
        0,
    )
    assert not brain.is_stripped(nib.Nifti1Image(two.astype(np.float32), affine))
    mask, method = brain.brain_mask(nib.Nifti1Image(t1, affine), "t1")
    assert method == "none" and (mask == inside).all()


def test_a_brain_cut_by_the_field_of_view_keeps_its_last_slice():
    mask = np.zeros((40, 40, 30), bool)
    mask[8:32, 8:32, 0:20] = True
    kept = brain._tidy(mask, opening=3)
    assert kept[15, 15, 0] and kept[:, :, 0].sum() == kept[:, :, 5].sum()


def test_ct_window_is_fixed_and_mr_percentiles_are_of_the_brain():
    mask = np.zeros((4, 5, 6), bool)
    mask[1:3, 1:4, 1:5] = True
    hu = np.full(mask.shape, 40.0)
    hu[1, 1, 1], hu[1, 1, 2], hu[1, 1, 3] = -50, 20, 300
    shown = intensity.window(hu, mask, 0, 80)
    assert (
        shown[1, 1, 1] == 0
        and shown[1, 1, 2] == 0.25
        and shown[1, 1, 3] == 1
        and shown[2, 2, 2] == 0.5
    )
    assert not shown[~mask].any() and shown.dtype == np.float32
    rng = np.random.default_rng(0)
    mr = rng.normal(500, 50, mask.shape)
    mr[~mask] = 1e6  # fat outside must not matter
    low, high = np.sort(mr[mask])[[0, -1]]
    np.testing.assert_allclose(
        intensity.percentiles(mr, mask, 0, 100)[mask], (mr[mask] - low) / (high - low), atol=1e-6
    )
    np.testing.assert_allclose(
        intensity.percentiles(mr * 7 + 3, mask, 1, 99),
        intensity.percentiles(mr, mask, 1, 99),
        atol=1e-5,
    )
    roomy = intensity.percentiles(mr, mask, 1, 50, 0.6)
    assert (
        np.median(roomy[mask]) == pytest.approx(0.6, abs=1e-3)
        and roomy.max() <= 1
        and (roomy[mask] > 0.6).any()
    )
    with pytest.raises(ScanError, match="constant"):
        intensity.percentiles(np.full(mask.shape, 7.0), mask, 1, 99)


def test_mutual_information_against_scikit_learn_and_its_limits():
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(0)
    a = rng.normal(size=20000)
    b = a + rng.normal(0, 0.5, a.size)
    bins = [np.digitize(v, np.quantile(v, np.linspace(0, 1, 33)[1:-1])) for v in (a, b)]
    assert quality.mutual_information(a, b) == pytest.approx(mutual_info_score(*bins), abs=1e-9)
    assert quality.mutual_information(a, -(a**3)) == pytest.approx(
        np.log(32), abs=0.01
    )  # any one-to-one relation
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
    hounsfield = {
        c.name: c.passed for c in quality.image_checks(np.array([0.0, 4000]), "ct", (200, 200, 150))
    }
    assert hounsfield["lowest value"] and hounsfield["highest value"]
    unsigned = {
        c.name: c.passed for c in quality.image_checks(np.array([30.0, 35]), "ct", (200, 200, 150))
    }
    assert not unsigned["lowest value"] and not unsigned["highest value"]


def test_dice_by_hand():
    a, b = np.zeros(10, bool), np.zeros(10, bool)
    a[:4], b[2:8] = True, True
    assert quality.dice(a, b) == pytest.approx(2 * 2 / 10)
    assert quality.dice(np.zeros(3, bool), np.zeros(3, bool)) == 0


def store(tmp_path, shape=(9, 7, 11)):
    rng = np.random.default_rng(0)
    image, mask = rng.random(shape).astype(np.float32), np.zeros(shape, bool)
    mask[2:7, 2:5, 3:9] = True  # 15 pixels on six slices
    mask[2, 2, 9] = True  # one pixel: too few
    z = slices.select(mask, 10)
    rows = []
    for scan, split, own in (("sub-01", "train", z[:4]), ("sub-02", "val", z[4:])):
        slices.write_arrays(tmp_path, scan, image * mask, mask, own)
        rows += [
            {"scan": scan, "subject": scan, "split": split, "row": i, "z": k, "brain_px": 15}
            for i, k in enumerate(own)
        ]
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
    import pickle

    store(tmp_path)
    there = pickle.loads(pickle.dumps(slices.SliceStore(tmp_path, {"sub-01"})))
    np.testing.assert_array_equal(
        there[3]["image"], slices.SliceStore(tmp_path, {"sub-01"})[3]["image"]
    )


def test_exported_slices_lie_where_they_were(tmp_path):
    image, _, z = store(tmp_path)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 4, 7], [0, 0, 0, 1]])
    slices.export_nifti(tmp_path / "nifti", "sub-01", image, affine, z)
    one = nib.load(tmp_path / "nifti" / "sub-01_slice-005.nii.gz")
    assert one.shape == (9, 7, 1) and len(list((tmp_path / "nifti").iterdir())) == 6
    np.testing.assert_allclose(one.get_fdata()[:, :, 0], image[:, :, 5], atol=1e-6)
    np.testing.assert_allclose(one.affine @ [3, 2, 0, 1], affine @ [3, 2, 5, 1])
