"""Healthy scans under shift: what is written, what is gated, what is not measured twice."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from benchmarks import shifted
from benchmarks.adaptation import healthy_cases
from evaluation import shifts
from pipelines.cohort.cases import load
from pipelines.detect.folder import read_history, seal, write_history
from pipelines.detect.run import load_run
from pipelines.pages.stress import stress_page
from pipelines.study import stress
from pipelines.study.stress import NONE, Asked, Row, summary
from preprocessing.files import read_table
from preprocessing.scans import ScanError
from tests.conftest import QUICK

MILD = (2,)
REFUSED = "a.nii: it lies back to front"


@pytest.fixture(scope="module")
def cohort(brain_t1, tmp_path_factory):
    """One healthy test scan, preprocessed quickly."""
    from pipelines.cohort.preprocess import Input, preprocess_cohort
    from pipelines.config import load_recipe
    from preprocessing.scans import Scan

    out = tmp_path_factory.mktemp("cohort")
    scan = Scan("head", brain_t1, "head", split="test", label="healthy")
    preprocess_cohort(Input(brain_t1.parent, [scan], {}, ()), load_recipe("t1", QUICK), out)
    return out


def test_a_shifted_cohort_has_the_scans_of_split_test_and_their_people(
    cohort, tmp_path, monkeypatch
):
    """benchmarks.shifted: values by hand; a scan of another split is left out."""
    (case,) = healthy_cases(cohort)
    splits = tmp_path / "splits.tsv"
    asked = ["shifted", "--data", str(cohort), "--splits", str(splits), "--shift", "contrast"]
    monkeypatch.setattr("sys.argv", [*asked, "--out", str(tmp_path / "raw")])
    splits.write_text("id\tsplit\nhead\ttest\n")
    shifted.main()
    (row,) = read_table(tmp_path / "raw" / "cohort.tsv")
    assert row == {
        "id": "head",
        "image": "head.nii",
        "subject": "head",
        "split": "test",
        "label": "healthy",
    }
    before, after = (
        np.asarray(nib.load(path).dataobj, float)
        for path in (case.image, tmp_path / "raw" / "head.nii")
    )
    brain = stress.head_of(case, "t1").brain
    middle = np.median(before[brain])
    less = np.where(before > 0, np.maximum(middle + 0.4 * (before - middle), 0), 0)  # air stays
    np.testing.assert_allclose(after, np.where(brain, less, before), atol=0.51)

    splits.write_text("id\tsplit\nhead\tval\n")
    shifted.main()
    assert read_table(tmp_path / "raw" / "cohort.tsv") == []


def test_shifted_scans_are_scored_or_refused_and_not_measured_twice(
    cohort, tiny_run, command, tmp_path, monkeypatch
):
    monkeypatch.setattr(stress, "SEVERITIES", MILD)
    (case,) = stress.healthy_test_cases([load_run(tiny_run)], cohort)
    kept = load(case)
    answers = iter((kept, replace(kept, image=kept.image + 0.05 * kept.brain), ScanError(REFUSED)))

    def prepare(scan, recipe):
        """As the real one, which takes long: a prepared scan, a noisier one, a refusal."""
        assert scan.image.is_file()
        answer = next(answers)
        if isinstance(answer, ScanError):
            raise answer
        return answer

    monkeypatch.setattr(stress, "prepare", prepare)
    asked = ("--run", tiny_run, "--data", cohort, "--out", tmp_path)
    done = command("stress", *asked, "--shifts", "noise,wrong orientation")
    assert done.code == 0, done.err
    rows = {r["shift"]: r for r in json.loads((tmp_path / "stress.json").read_text())["rows"]}
    assert set(rows) == {NONE, "noise", "wrong orientation"}
    assert rows[NONE]["verdict"] == "scored" and rows["noise"]["score"] != rows[NONE]["score"]
    wrong = rows["wrong orientation"]
    assert wrong["verdict"] == "not scored" and "score" not in wrong
    assert wrong["reason"] == "it lies back to front"
    page = (tmp_path / "index.html").read_text()
    assert "marked in vain" in page and "it lies back to front" in page

    # nothing is prepared a second time: there are no more answers
    assert command("stress", *asked, "--shifts", "noise,wrong orientation").code == 0
    error = command("stress", *asked, "--shifts", "nose").error
    assert "unknown shift 'nose'" in error and "did you mean 'noise'" in error


@pytest.fixture
def prepared(cohort, tiny_run, monkeypatch):
    """The cohort's case, and the scans that were prepared, which is not done for true."""
    (case,) = stress.healthy_test_cases([load_run(tiny_run)], cohort)
    kept = load(case)
    done = []

    def prepare(scan, recipe):
        done.append(scan.id)
        return kept

    monkeypatch.setattr(stress, "prepare", prepare)
    return case, done


def test_a_child_run_with_its_parents_name_and_weights_is_measured_itself(
    prepared, tiny_run, tmp_path
):
    case, done = prepared
    parent = load_run(tiny_run)
    child = shutil.copytree(tiny_run, tmp_path / tiny_run.name)
    threshold = (child / "threshold.json").read_text()
    assert '"voxel": 0.2' in threshold
    (child / "threshold.json").write_text(threshold.replace('"voxel": 0.2', '"voxel": 0.9'))
    seal(child)
    out = tmp_path / "out"
    out.mkdir()
    for run in (parent, load_run(child), load_run(child)):
        stress.stress(Asked({tiny_run.name: run}, [case], [], {}), out)
    assert run.weights_digest == parent.weights_digest and len(done) == 2


def test_rows_of_another_cohort_or_of_another_site_of_the_same_name_are_not_taken(
    prepared, tiny_run, tmp_path
):
    case, done = prepared
    runs = {"a": load_run(tiny_run)}
    again = case.model_copy(update={"fingerprint": "made anew"})
    stress.stress(Asked(runs, [case], [], {"scans of x": [case]}), tmp_path)
    assert len(done) == 2
    other = case.model_copy(update={"id": "other", "digest": "another image"})
    rows = stress.stress(Asked(runs, [case], [], {"scans of x": [other]}), tmp_path)
    assert done[2:] == ["other"] and [row.scan for row in rows] == ["head", "other"]
    rows = stress.stress(Asked(runs, [again], [], {"scans of x": [other]}), tmp_path)
    assert done[3:] == ["head"] and [row.scan for row in rows] == ["other", "head"]
    rows = stress.stress(Asked(runs, [again, other], [], {}, most=1), tmp_path)
    assert not done[4:] and [row.scan for row in rows] == ["head"]


def test_sites_of_one_name_and_no_scans_are_refused_before_the_work(
    cohort, tiny_run, command, tmp_path
):
    asked = ("--run", tiny_run, "--data", cohort, "--out", tmp_path / "out")
    done = command("stress", *asked, "--site", cohort, cohort)
    assert done.code == 2 and "two sites are called the same" in done.error
    for scans in (0, -1):
        done = command("stress", *asked, "--scans", scans)
        assert done.code == 2 and f"--scans: {scans}; expected at least one scan" in done.error
    assert not (tmp_path / "out").exists()


def test_what_a_run_has_learned_from_or_was_prepared_otherwise_is_refused(
    cohort, tiny_run, command, tmp_path
):
    own = shutil.copytree(tiny_run, tmp_path / "run")
    (case,) = stress.healthy_test_cases([load_run(own)], cohort)
    write_history(own, read_history(own) | {"digests": [case.digest]})
    error = command("stress", "--run", own, "--data", cohort, "--out", tmp_path / "a").error
    assert "test scan 'head' is an image that" in error
    recipe = (tiny_run / "recipe.yaml").read_text()
    other = shutil.copytree(tiny_run, tmp_path / "other")
    (other / "recipe.yaml").write_text(recipe.replace("high: 95.0", "high: 99.0"))
    seal(other)
    error = command("stress", "--run", other, "--data", cohort, "--out", tmp_path / "b").error
    assert "preprocessed with another" in error


def test_a_head_goes_through_a_file_as_it_is(tmp_path):
    from preprocessing.images import read_image

    voxels = np.arange(8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10) * 0.4
    affine = np.array([[-2.0, 0, 0, 9], [0, 1.5, 0.2, -7], [0, -0.2, 3.0, 5], [0, 0, 0, 1]])
    head = shifts.Head(voxels, affine, voxels > 5, np.zeros(3), False)
    stress.write_head(head, tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    np.testing.assert_allclose(image.affine, affine, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(image.dataobj), voxels.round(), atol=1e-4)
    small = shifts.Head(voxels / 1000, affine, voxels > 5, np.zeros(3), False)
    stress.write_head(small, tmp_path / "b.nii")
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "b.nii").dataobj), voxels / 1000)


def row(scan, shift, severity, score, ml=0.0, verdict="scored"):
    gone = verdict == "not scored"
    return Row(
        run="a",
        scan=scan,
        shift=shift,
        severity=severity,
        verdict=verdict,
        score=None if gone else score,
        marked_ml=None if gone else ml,
        findings=None if gone else 1,
    )


def test_the_summary_by_hand():
    rows = [
        row("1", NONE, 0, 1.0),
        row("2", NONE, 0, 3.0),  # sd of both: sqrt(2)
        row("1", "blur", 1, 2.0, ml=4.0, verdict="scored with warning"),
        row("2", "blur", 1, 7.0, ml=8.0),
        row("2", "blur", 2, 0, verdict="not scored"),
    ]
    plain, blur, worse = summary(rows)
    assert (blur["scans"], blur["warned"], blur["not scored"]) == (2, 1, 0)
    assert (blur["marked_ml"], blur["findings"]) == (6.0, 1.0)
    assert blur["rise"] == pytest.approx((1 + 4) / 2 / np.sqrt(2))
    assert (worse["not scored"], worse["marked_ml"], worse["rise"]) == (1, None, None)
    assert plain["rise"] == 0 and plain["shift"] == NONE
    asked = Asked({}, [], [], {})
    heading = "Why scans were not scored"
    assert heading in stress_page(asked, rows, summary(rows))
    assert heading not in stress_page(asked, rows[:4], summary(rows[:4]))
