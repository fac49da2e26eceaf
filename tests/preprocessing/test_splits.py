"""Splits by subject, and leaks that are refused by name."""

from pathlib import Path

import pytest

from preprocessing.scans import InputError, Scan
from preprocessing.splits import assign_splits, check_leaks


def touch(path):
    """An empty file: read_scans lists names and reads no image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def healthy(*subjects):
    return [Scan(f"{s}_scan", Path(f"/data/{s}.nii.gz"), s) for s in subjects]


def test_splits_are_by_subject_and_abnormal_subjects_are_tested():
    cohort = healthy(*"abcdefghij")
    cohort += [Scan(f"{s}_second", Path(f"/data/{s}2.nii"), s) for s in "abcd"]
    cohort += [Scan("a_lesion", Path("/data/a3.nii"), "a", label="abnormal")]
    given = assign_splits(cohort)
    by_subject = {}
    for scan in given:
        by_subject.setdefault(scan.subject, set()).add(scan.split)
    assert all(len(splits) == 1 for splits in by_subject.values())
    assert by_subject["a"] == {"test"}
    assert [s.id for s in given] == [s.id for s in cohort]
    found = [splits.pop() for splits in by_subject.values()]
    # 9 healthy subjects: 2 for val, 2 for test, the rest to train; and the abnormal one
    assert [found.count(name) for name in ("train", "val", "test")] == [5, 2, 3]
    check_leaks(given)


def test_splits_depend_on_seed_and_names_and_not_on_order():
    cohort = healthy(*(f"sub-{i:02d}" for i in range(20)))
    first = {s.subject: s.split for s in assign_splits(cohort, seed=0)}
    assert first == {s.subject: s.split for s in assign_splits(cohort[::-1], seed=0)}
    assert first != {s.subject: s.split for s in assign_splits(cohort, seed=1)}
    assert first == {s.subject: s.split for s in assign_splits(cohort, seed=0)}


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, "test"), (2, "train val"), (3, "test train val"), (4, "test train train val")],
)
def test_small_cohorts_still_validate(n, expected):
    assert " ".join(sorted(s.split for s in assign_splits(healthy(*"abcdefg"[:n])))) == expected


def test_one_subject_validates_however_small_its_share():
    given = [s.split for s in assign_splits(healthy(*"abcde"), fractions=(0.98, 0.02, 0))]
    assert sorted(given) == ["train"] * 4 + ["val"]


def test_given_splits_stay_and_partial_ones_are_refused():
    full = [Scan("1", Path("1.nii"), "1", "val"), Scan("2", Path("2.nii"), "2", "train")]
    assert assign_splits(full, seed=9) == full
    with pytest.raises(
        InputError,
        match=r"3\.nii: no split, while other rows have one; give every row a split or none",
    ):
        assign_splits([*full, Scan("3", Path("3.nii"), "3")])


def test_leaks_are_refused_by_name(tmp_path):
    image = touch(tmp_path / "x.nii")
    fine = [
        Scan("s1", tmp_path / "a.nii", "p1", "train"),
        Scan("s2", tmp_path / "b.nii", "p1", "train", "healthy"),
    ]
    fine += [
        Scan("s3", tmp_path / "c.nii", "p2", "test", "abnormal"),
        Scan("s4", image, "p3", "val"),
    ]
    check_leaks(fine)
    with pytest.raises(
        InputError,
        match=r"subject 'p1' is in two splits, 'train' and 'test'; keep a subject in one",
    ):
        check_leaks([*fine, Scan("s5", tmp_path / "e.nii", "p1", "test")])
    (tmp_path / "link.nii").symlink_to(image)
    with pytest.raises(
        InputError, match=r"link\.nii: listed twice, as 's4' and 's6'; list a scan once"
    ):
        check_leaks([*fine, Scan("s6", tmp_path / "link.nii", "p9", "val")])
    for split in ("train", "val"):
        with pytest.raises(
            InputError, match=rf"z\.nii: abnormal scan 's7' in split '{split}'.*move it to 'test'"
        ):
            check_leaks([*fine, Scan("s7", tmp_path / "z.nii", "p7", split, "abnormal")])
