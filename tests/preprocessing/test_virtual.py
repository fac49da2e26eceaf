"""The virtual cohort: seeded, varied, and its masks say where the lesions are."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, label

from preprocessing.datasets import virtual, virtual_lesions
from preprocessing.files import read_table
from tests.shared import twice_as_coarse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    out = tmp_path_factory.mktemp("cohort")
    with pytest.MonkeyPatch.context() as patch:  # coarser voxels: an eighth of the work
        patch.setattr(virtual, "VOXELS", twice_as_coarse())
        return out, virtual.make_cohort(
            out, seed=3, n_train=2, n_val=1, n_test_healthy=1, n_test_abnormal=2
        )


def record(out):
    return {s["id"]: s for s in json.loads((out / "cohort.json").read_text())["subjects"]}


def test_the_table_says_who_is_who(cohort):
    out, table = cohort
    rows = read_table(table)
    assert [(r["subject"], r["split"], r["label"]) for r in rows] == [
        ("sub-001", "train", "healthy"),
        ("sub-002", "train", "healthy"),
        ("sub-201", "val", "healthy"),
        ("sub-301", "test", "healthy"),
        ("sub-401", "test", "abnormal"),
        ("sub-402", "test", "abnormal"),
    ]
    assert all(bool(r["mask"]) == bool(r["pathology"]) == (r["label"] == "abnormal") for r in rows)
    assert len({r["subject"] for r in rows}) == len(rows)
    for row in rows:
        image = nib.load(out / row["image"])
        drawn = record(out)[row["subject"]]
        np.testing.assert_allclose(image.header.get_zooms(), drawn["voxel_mm"], rtol=1e-5)
        assert len(set(image.shape)) == 3
        assert image.header["sform_code"] == image.header["qform_code"] == 1
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-3)
        data = image.get_fdata()
        assert not data[0].any() and not data[-1].any()
        assert not data[..., 0].any() and not data[..., -1].any()
        brain_ml = (data != 0).sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1000
        # the template's 1883 ml, by size and deformation
        assert 0.85**3 * 1880 < brain_ml < 1.15**3 * 1880
        tissue = np.percentile(data[data != 0], (5, 95))
        assert tissue[1] > 1.5 * tissue[0]


def test_grids_differ_and_are_oblique(cohort):
    out, table = cohort
    affines = [nib.load(out / r["image"]).affine for r in read_table(table)]
    assert len({nib.aff2axcodes(a) for a in affines}) > 1
    for affine in affines:
        axes = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
        assert np.sort(axes, axis=0)[:2].max() > 0.01  # no axis of the array is one of space
    kinds = {nib.load(out / r["image"]).get_data_dtype().name for r in read_table(table)}
    assert kinds <= {"int16", "float32"}


def test_lesion_masks_lie_on_the_scan_and_have_the_recorded_volume(cohort):
    out, table = cohort
    for row in read_table(table):
        lesions = record(out)[row["subject"]]["lesions"]
        if row["label"] == "healthy":
            assert lesions == []
            continue
        image = nib.load(out / row["image"])
        mask = nib.load(out / row["mask"])
        assert image.shape == mask.shape
        np.testing.assert_array_equal(image.affine, mask.affine)
        inside = np.asarray(mask.dataobj) > 0
        assert not (image.get_fdata()[inside] == 0).any()
        ml = inside.sum() * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        measured = [x["measured_ml"] for x in lesions]
        assert max(measured) - 1e-3 <= ml <= sum(measured) + 1e-3
        for lesion in lesions:
            wanted = lesion["wanted_ml"]
            assert 0.85 * wanted <= lesion["measured_ml"] <= 1.05 * wanted + 0.01


def test_a_blob_is_one_piece_of_its_volume():
    subject = virtual.draw(5, 402, "test", "abnormal", 1)
    subject.voxel_mm = [2.0, 1.9, 3.0]
    for ml in (0.5, 30.0):
        centre = virtual_lesions.place(np.random.default_rng(1), ml)
        subject.lesions = [virtual_lesions.Lesion("bright", "blob", centre, ml, 0.5)]
        mask = virtual.render(subject, 5)[1]
        assert label(mask)[1] == 1
        assert mask.sum() * 2.0 * 1.9 * 3.0 / 1000 == pytest.approx(ml, rel=0.15)


def test_noise_is_as_smooth_in_mm_along_a_thick_axis():
    voxel = np.array([1.0, 1.5, 3.0])
    for mm in (6.0, 30.0):
        values = virtual_lesions.smooth_noise(
            np.random.default_rng(0), mm / voxel, tuple((300 / voxel).astype(int))
        )
        assert values.mean() == pytest.approx(0, abs=1e-3)
        assert values.std() == pytest.approx(1, abs=1e-3)
        # mm by which it changes by one deviation
        width = [size / np.diff(values, axis=a).std() for a, size in enumerate(voxel)]
        np.testing.assert_allclose(width, np.sqrt(2) * mm, rtol=0.25)


@pytest.mark.parametrize("kind, sign", [("bright", 1), ("dark", -1)])
def test_lesions_change_the_scan_inside_their_mask_alone(kind, sign):
    subject = virtual.draw(5, 401, "test", "abnormal", 2)
    subject.voxel_mm = [2.4, 2.3, 2.2]
    subject.lesions = [
        virtual_lesions.Lesion(
            kind, "ellipsoid", virtual_lesions.place(np.random.default_rng(0), 8), 8.0, 0.5
        )
    ]
    ill, mask, affine = virtual.render(subject, 5)
    well, none, _ = virtual.render(subject, 5, lesions=False)
    volume = mask.sum() * abs(np.linalg.det(affine[:3, :3]))
    assert not none.any() and volume == pytest.approx(8000, rel=0.15)
    assert sign * (ill[mask] - well[mask]).mean() > 0.2 * well[mask].mean()
    far = ~binary_dilation(mask, iterations=4)
    assert np.abs(ill - well)[far].max() < 0.02 * well.max()


def test_a_subject_is_made_of_its_seed_and_number_alone():
    one, two, other = (virtual.draw(seed, 1, "train", "healthy") for seed in (3, 3, 4))
    assert one == two and one != other
    for subject in (one, two, other):
        subject.voxel_mm = [4.0, 4.2, 3.9]
    first = virtual.render(one, 3)[0]
    np.testing.assert_array_equal(first, virtual.render(two, 3)[0])
    different = virtual.render(other, 4)[0]
    assert first.shape != different.shape or not np.allclose(first, different)


def test_a_subject_does_not_depend_on_how_many_there_are(cohort, monkeypatch, tmp_path):
    monkeypatch.setattr(virtual, "_write", lambda subject, seed, out: {"subject": subject.id})
    monkeypatch.setattr(virtual, "VOXELS", twice_as_coarse())
    virtual.make_cohort(tmp_path, seed=3, n_train=3, n_val=2, n_test_healthy=0, n_test_abnormal=5)
    more = record(tmp_path)
    for name, drawn in record(cohort[0]).items():
        for lesion in drawn["lesions"]:
            lesion["measured_ml"] = 0.0  # not drawn: known once rendered
        assert name == "sub-301" or more[name] == drawn


@pytest.mark.parametrize("seed", range(5))
def test_lesions_spread_over_sizes_and_kinds(seed):
    first_ml = []
    lesions = []
    for i in range(6):
        drawn = virtual.draw(seed, 401 + i, "test", "abnormal", i).lesions
        first_ml.append(drawn[0].wanted_ml)
        lesions += drawn
    assert min(first_ml) < 1 and max(first_ml) > 10
    assert all(0.2 <= lesion.wanted_ml <= 40 for lesion in lesions)
    assert {lesion.kind for lesion in lesions} == set(virtual_lesions.KINDS)


def test_an_existing_cohort_is_left_alone(cohort):
    out, table = cohort
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.*")}
    again = virtual.make_cohort(
        out, seed=3, n_train=2, n_val=1, n_test_healthy=1, n_test_abnormal=2
    )
    assert again == table
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.*")}
