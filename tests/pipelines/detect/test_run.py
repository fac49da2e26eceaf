"""The run folder: its format, what it names, what it refuses."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from pipelines.config import load_recipe, read_recipe, write_recipe
from pipelines.detect.run import FORMAT, load_run, seal, write_history
from pipelines.training.calibrate import calibrate_run
from preprocessing.scans import InputError


@pytest.fixture
def run_dir(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_says_its_format_and_a_newer_one_is_refused(run_dir):
    (run_dir / "run.json").write_text("{}")  # version 0.1.0 wrote no format: it reads as 1
    load_run(run_dir, "cpu")
    write_history(run_dir, {"data": "ct"})
    assert json.loads((run_dir / "run.json").read_text()) == {"format": FORMAT, "data": "ct"}
    load_run(run_dir, "cpu")
    (run_dir / "run.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(
        InputError, match=rf"a run of format {FORMAT + 1}; .* up to format {FORMAT}"
    ):
        load_run(run_dir, "cpu")


def test_a_template_travels_with_the_run(run_dir, tmp_path):
    """The user's template may be gone, or the run on another machine."""
    template = tmp_path / "atlas" / "mine.nii.gz"
    template.parent.mkdir()
    nib.save(nib.Nifti1Image(np.ones((9, 10, 11), np.float32), np.eye(4)), template)
    recipe = load_recipe("t1", template=str(template))
    write_recipe(run_dir, recipe)
    template.unlink()
    assert str(tmp_path) not in (run_dir / "recipe.yaml").read_text()
    moved = run_dir.rename(tmp_path / "moved")
    read = read_recipe(moved)
    assert read.template == str(moved / "template.nii.gz")
    assert nib.load(read.template).shape == (9, 10, 11)
    assert read.model_copy(update={"template": recipe.template}) == recipe


def test_damage_is_one_sentence(run_dir):
    threshold = json.loads((run_dir / "threshold.json").read_text())
    threshold["points"]["quantile"]["voxel"] = "high"
    (run_dir / "threshold.json").write_text(json.dumps(threshold))
    with pytest.raises(InputError, match="not the file that this run was finished with"):
        load_run(run_dir, "cpu")
    seal(run_dir)
    with pytest.raises(InputError, match=r"is damaged .*voxel"):
        load_run(run_dir, "cpu")


def test_points_by_name(run_dir):
    run = load_run(run_dir, "cpu")
    assert (run.point().voxel, run.point().scan) == (0.2, 0.15)
    assert (run.point("fixed=0.3,0.5").voxel, run.point("fixed=0.3,0.5").scan) == (0.3, 0.5)
    assert run.point("fixed=0.3").scan == 0.15
    assert np.isnan(run.point("oracle").voxel)
    for text, sentence in (
        ("quantil", "did you mean 'quantile'"),
        ("fixed", "needs a value"),
        ("few-label", "no few-label point"),
        ("few-label=1", "takes no value"),
        ("quantile=2", "between 0 and 1"),
        ("quantile=x", "expected a number"),
        ("conformal=0.01", "more healthy"),
    ):
        with pytest.raises(InputError, match=sentence):
            run.point(text)
    assert run.point("conformal=0.2").voxel == pytest.approx(0.3)  # the largest of five maxima


def test_calibration_alone_rewrites_the_thresholds(run_dir, chain_cases):
    """On a trained run, with other healthy cases than it was trained with."""
    cases, native_of = chain_cases
    run = load_run(run_dir, "cpu")
    calibrate_run(run, cases)
    again = load_run(run_dir, "cpu")
    assert [scan.id for scan in again.reference.scans] != [s.id for s in run.reference.scans]
    values = np.concatenate([native.map[native.brain] for native in map(native_of(run), cases)])
    wanted = np.quantile(values, run.config.calibration.quantile)
    assert again.threshold == pytest.approx(wanted, rel=5e-3)
    assert again.weights_digest == run.weights_digest


@pytest.fixture
def chain_cases(brain_t1, quick_prepare, tmp_path):
    """A cohort of one healthy case, and what maps it."""
    from pipelines.cohort.cases import load, read_cases
    from pipelines.cohort.preprocess import list_input, preprocess_cohort
    from tests.conftest import QUICK

    recipe = load_recipe("t1", QUICK)
    out = tmp_path / "data"
    out.mkdir()
    preprocess_cohort(list_input(brain_t1, "t1", out), recipe, out)
    return read_cases(out), lambda run: lambda case: run.detector.map(load(case))
