"""Splits of folds: a subject stays on one side, whatever scans it has."""

from pathlib import Path

from pipelines.study.folds import write_folds
from pipelines.study.protocol import Protocol
from preprocessing.files import read_table
from tests.conftest import case_of


def test_a_subject_with_healthy_and_planted_scans_is_in_one_split(tmp_path):
    cases = []
    for number in range(10):
        subject = f"s{number}"
        for kind, label in (("", "healthy"), ("_bright", "abnormal"), ("_dark", "abnormal")):
            cases.append(case_of(subject + kind, Path("x"), subject=subject, label=label))
    cases += [case_of(f"p{n}", Path("x"), subject=f"p{n}", label="abnormal") for n in range(5)]
    (tmp_path / "labelled").mkdir()
    write_folds(cases, Protocol(name="kfold", folds=5, repeats=1), tmp_path)
    subject_of = {case.id: case.subject for case in cases}
    tested: list[str] = []
    tuned: list[str] = []
    for fold in range(5):
        rows = read_table(tmp_path / f"repeat-0_fold-{fold}.tsv")
        splits: dict[str, set[str]] = {}
        for row in rows:
            splits.setdefault(subject_of[row["id"]], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
        validated = [row["id"] for row in rows if row["split"] == "val"]
        assert validated and all(name in subject_of.values() for name in validated)
        tested += [row["id"] for row in rows if row["split"] == "test"]
        tuned += [row["id"] for row in rows if row["split"] == "tune"]
    assert sorted(tuned) == [f"p{n}" for n in range(5)]
    assert sorted(tested) == sorted(subject_of)
