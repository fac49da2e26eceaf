"""The run folder: its format, what it names, what it refuses."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label

from evaluation.metrics import VoxelHistogram
from pipelines.config import load_recipe, read_recipe, write_recipe
from pipelines.detect.detector import cut
from pipelines.detect.folder import FORMAT, seal, write_history
from pipelines.detect.report import findings
from pipelines.detect.run import load_run, write_calibration, write_voxels
from pipelines.detect.typical import Typical, write_typical
from pipelines.training.calibrate import calibrate
from preprocessing.scans import InputError
from preprocessing.tables import read_scans


def calibrate_run(run, cases):
    """Calibrate a run anew in its own folder."""
    calibrated = calibrate([(run.detector, cases)])
    write_calibration(run.folder, *calibrated, run.config.calibration.point)
    seal(run.folder)


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


def test_the_scan_that_sets_the_level_shows_no_finding_and_one_just_below_it(run_dir, chain_cases):
    """With one healthy scan its strongest component is the level; p is counted by hand."""
    cases, native_of = chain_cases
    calibrate_run(load_run(run_dir, "cpu"), cases)
    run = load_run(run_dir, "cpu")
    point = run.point("finding")
    native = native_of(run)(cases[0])
    outlined = point.model_copy(update={"component": None})
    marked = cut(native, outlined, run.config.postprocess)
    pieces = label(marked, connectivity=3)
    peaks = ndimage.maximum(native.map, pieces, range(1, pieces.max() + 1))
    assert point.component == pytest.approx(max(peaks)) and len(peaks) > 1
    assert "like the 1 that it was calibrated on, at most one in 2 shows" in point.promise

    assert not cut(native, point, run.config.postprocess).any()
    lower = point.model_copy(update={"component": point.component * (1 - 1e-6)})
    kept = cut(native, lower, run.config.postprocess)
    assert (kept == (pieces == 1 + int(np.argmax(peaks)))).all()

    said = findings(native, marked, np.eye(4), point, run.healthy_strongest(point))
    p_values = [component.p_value for component in said["components"]]
    assert set(p_values) == {1.0}  # (1 + 1) / (1 + 1): none is stronger than the healthy one
    strong = [component.strength for component in said["components"]]
    assert strong == sorted(strong, reverse=True)
    assert run.healthy_strongest(run.point("quantile=0.5")).size == 0  # another outline


def test_a_damaged_level_is_refused(run_dir, chain_cases):
    """Without its level point "finding" would mark every component."""
    calibrate_run(load_run(run_dir, "cpu"), chain_cases[0])
    stored = json.loads((run_dir / "threshold.json").read_text())
    for level in (None, "Infinity", -1):
        stored["points"]["finding"]["component"] = level
        (run_dir / "threshold.json").write_text(json.dumps(stored))
        seal(run_dir)
        with pytest.raises(InputError, match="component"):
            load_run(run_dir, "cpu")


@pytest.mark.parametrize("damage", ["text", "nothing", "cut", "foreign", "no rows"])
def test_damaged_healthy_voxels_are_named(run_dir, damage):
    path = run_dir / "healthy_voxels.npz"
    voxels = VoxelHistogram()
    voxels.update(np.linspace(0, 1, 99), np.zeros(99, bool))
    write_voxels(voxels, run_dir)
    run = load_run(run_dir, "cpu")
    assert run.healthy_voxels.quantile(0.5) == pytest.approx(0.5, abs=0.02)
    if damage == "text":
        path.write_text("no numbers")
    elif damage == "nothing":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "foreign":
        np.savez(path, other=np.zeros(3))
    else:
        np.savez(path, rows=np.zeros(4))
    with pytest.raises(InputError, match=r"healthy_voxels\.npz: a damaged file; copy the run"):
        run.healthy_voxels  # noqa: B018


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


def test_a_report_says_what_is_unlike_the_training_scans(run_dir, brain_t1, quick_prepare):
    (scan,) = read_scans(brain_t1, "t1")
    known = {"brain volume, ml": [100.0, 110.0, 120.0, 130.0, 140.0], "noise": [0.0] * 4 + [9.0]}
    write_typical(Typical(features=known, histogram=[1 / 64] * 64), run_dir)
    seal(run_dir)
    report = load_run(run_dir, "cpu").detect(scan).report
    outside = {row.name: row.outside for row in report.typical}
    assert outside == {"brain volume, ml": True, "noise": False}
    (said,) = [flag for flag in report.flags if "training scans" in flag]
    assert "is unlike the training scans (100 to 140)" in said and said in report.row()["flags"]

    (run_dir / "typical.json").write_text("{}")
    with pytest.raises(InputError, match=r"typical\.json: not the file"):
        load_run(run_dir, "cpu")
    seal(run_dir)
    with pytest.raises(InputError, match=r"typical.json is damaged \('features': field required"):
        load_run(run_dir, "cpu")
