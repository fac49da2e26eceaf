"""Slices without lesion of a patient's scan: which they are, and where they may go."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines.cohort.cases import count_parts, learning_cases, load, read_cases
from pipelines.cohort.lesion_free import free_slices
from pipelines.cohort.preprocess import Input, preprocess_cohort
from pipelines.config import load_recipe
from pipelines.study.folds import write_folds
from pipelines.study.protocol import Protocol
from preprocessing.files import read_table
from preprocessing.scans import InputError, Scan
from preprocessing.slices import SliceStore
from preprocessing.splits import assign_splits, check_leaks
from tests.conftest import QUICK, case_of

ASKED = {"healthy_slices": "lesion_free"}


def patient(name, **given):
    files = {"image": Path(f"/data/{name}.nii"), "mask": Path(f"/data/{name}_mask.nii")}
    return Scan(
        **({"id": name, "subject": name, "label": "abnormal", "extra": ASKED, **files} | given)
    )


def test_the_margin_is_kept_above_and_below():
    brain = np.zeros((4, 5, 40), bool)
    brain[1:3, 1:4, 3:38] = True
    lesions = np.zeros_like(brain)
    lesions[2, 2, [15, 16, 30]] = True
    got = np.flatnonzero(free_slices(lesions, brain, 5))
    assert got.tolist() == [3, 4, 5, 6, 7, 8, 9, 22, 23, 24, 36, 37]
    assert np.flatnonzero(free_slices(lesions * 0 > 0, brain, 5)).tolist() == list(range(3, 38))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"extra": {"healthy_slices": "all"}}, "expected lesion_free"),
        ({"label": "healthy"}, "abnormal scan with a lesion mask"),
        ({"mask": None}, "abnormal scan with a lesion mask"),
        ({"extra": ASKED | {"margin_mm": "near"}}, "expected mm"),
        ({"extra": {}, "split": "train"}, "training and thresholds take healthy scans only"),
    ],
)
def test_what_was_not_asked_for_or_cannot_be_met_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        check_leaks([patient("a", **given)])


def test_patients_whose_slices_are_asked_for_are_split_as_others_are():
    given = assign_splits([patient(name) for name in "abcdefghij"])
    assert sorted(scan.split for scan in given) == ["test"] * 2 + ["train"] * 6 + ["val"] * 2
    check_leaks(given)
    plain = assign_splits([patient(name, extra={}) for name in "abc"])
    assert {scan.split for scan in plain} == {"test"}


def whole_and_part(name, split="train"):
    row = {"subject": name, "split": split, "digest": name, "healthy_slices": "lesion_free"}
    data = Path("data")
    return [
        case_of(name, data, **row, label="abnormal", mask="m.nii"),
        case_of(f"{name}_lesion-free", data, **row, label="healthy"),
    ]


def test_the_slices_learn_in_place_of_the_scan_and_are_never_tested(tmp_path):
    cases = []
    for name in "abcdefgh":
        cases += whole_and_part(name)
    learned = learning_cases(cases, "train", Path("data"))
    assert [case.id for case in learned] == [f"{name}_lesion-free" for name in "abcdefgh"]
    assert count_parts([case.id for case in learned]) == 8 and count_parts(["a"]) == 0

    (tmp_path / "labelled").mkdir()
    write_folds(cases, Protocol(name="kfold", folds=4, repeats=1), tmp_path)
    tested = []
    for fold in range(4):
        split_of = {r["id"]: r["split"] for r in read_table(tmp_path / f"repeat-0_fold-{fold}.tsv")}
        test = [name for name, split in split_of.items() if split == "test"]
        rest = [name for name in split_of if name not in test]
        assert all("lesion-free" not in name for name in test)
        assert all("lesion-free" in name for name in rest) and len(rest) == 8 - len(test)
        assert not {name[0] for name in test} & {name[0] for name in rest}
        tested += test
    assert sorted(tested) == list("abcdefgh")


def test_a_scan_gives_its_slices_without_lesion(brain_t1, tmp_path):
    """Against the lesion's voxels, carried to the atlas one by one."""
    image = nib.load(brain_t1)
    lesions = np.zeros(image.shape, np.uint8)
    lesions[40:46, 38:44, 28:31] = 1
    mask = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(lesions, image.affine), mask)
    scan = patient("sub-01", image=brain_t1, mask=mask, split="train")
    out = tmp_path / "data"
    out.mkdir()
    recipe = load_recipe("t1", QUICK)
    given = Input(brain_t1, [scan], {}, [])
    assert [failure for _, failure in preprocess_cohort(given, recipe, out)] == [None]

    whole, part = read_cases(out)
    assert whole.gives_part and part.is_part and part.subject == whole.subject
    prepared = load(part)
    atlas_from_scan = np.linalg.inv(prepared.grid.affine) @ np.linalg.inv(prepared.scan_from_atlas)
    voxels = np.c_[np.argwhere(lesions), np.ones(lesions.sum())]
    z = (atlas_from_scan @ image.affine @ voxels.T)[2]
    shown = np.flatnonzero(prepared.brain.any((0, 1)))
    away = np.abs(shown[:, None] - z).min(1)
    assert 8.5 < away.min() < 13  # 10 mm from the nearest voxel, which is 3 mm thick
    everything = np.flatnonzero(load(whole).brain.any((0, 1)))
    dropped = np.setdiff1d(everything, shown)
    assert 20 <= len(dropped) <= 36 and z.min() - 13 < dropped.min() < z.min()
    assert np.array_equal(prepared.image, load(whole).image)
    store = SliceStore(out / "slices", {part.id})
    assert set(store.places[:, 2].tolist()) <= set(shown.tolist()) and len(store) > 50

    stamp = part.sidecar.stat().st_mtime_ns
    preprocess_cohort(given, recipe, out)
    assert part.sidecar.stat().st_mtime_ns == stamp and len(read_cases(out)) == 2
