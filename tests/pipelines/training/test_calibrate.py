"""A child run: the parent's network with thresholds of other healthy scans."""

import shutil

import numpy as np
import pytest

from evaluation.metrics import VoxelHistogram
from pipelines.cohort.cases import load, read_cases
from pipelines.detect.config import load_run_config
from pipelines.detect.run import load_run
from pipelines.training.calibrate import child_run
from pipelines.training.folds import train_run
from preprocessing.files import write_table
from preprocessing.scans import InputError
from tests.shared import run as command

pytestmark = pytest.mark.usefixtures("no_figures")

SETTINGS = ["image_size=[48,48]", "loop.loader_workers=0", "postprocess.rim_mm=0"]


@pytest.fixture(scope="module")
def data(pictures):
    """The preprocessed pictures that all tests share."""
    return pictures / "heads"


@pytest.fixture(scope="module")
def healthy(data):
    return [case for case in read_cases(data) if case.label == "healthy"]


@pytest.fixture(scope="module")
def parent(data, healthy, tmp_path_factory):
    """An atlas of five pictures, validated on three."""
    folder = tmp_path_factory.mktemp("parent")
    splits_of = ["train"] * 5 + ["val"] * 3
    rows = [{"id": c.id, "split": s} for c, s in zip(healthy[:8], splits_of, strict=True)]
    write_table(folder / "splits.tsv", rows)
    train_run(load_run_config("atlas", SETTINGS), data, folder / "run", folder / "splits.tsv")
    return load_run(folder / "run", "cpu")


def test_thresholds_are_those_of_the_new_scans_and_the_network_is_the_parent_s(
    parent, healthy, tmp_path
):
    others = healthy[8:14]
    child = child_run(parent, others, tmp_path / "child")
    assert child.weights_digest == parent.weights_digest
    assert child.history["parent"] == {"run": "run", "weights": parent.weights_digest}
    assert child.history["calibrated_on"] == [case.id for case in others]

    voxels = VoxelHistogram()
    for case in others:
        native = parent.detector.map(load(case))
        values = native.map[native.brain]
        voxels.update(values, np.zeros(values.size))
    point = child.point()
    assert point.voxel == voxels.quantile(parent.config.calibration.outline)
    assert point.voxel != parent.point().voxel
    assert {scan.id for scan in child.reference.scans} == {case.id for case in others}
    assert "like the 6 that it was calibrated on, at most one in 7" in point.promise
    assert len(child.typical.features["noise"]) == 6
    assert load_run(parent.folder, "cpu").points == parent.points  # the parent is left alone


def test_scans_that_cannot_calibrate(parent, data, healthy, tmp_path):
    abnormal = next(case for case in read_cases(data) if case.label == "abnormal")
    for cases, sentence in (
        (healthy[8:12], "4 healthy scans; calibration needs at least 5"),
        (healthy[7:13], "is an image that .* has learned from"),
        ([*healthy[8:13], abnormal], f"scan '{abnormal.id}' is abnormal"),
    ):
        with pytest.raises(InputError, match=sentence):
            child_run(parent, cases, tmp_path / "child")
    assert not (tmp_path / "child").exists()


def test_another_run_in_out_is_never_lost_and_the_same_one_is_made_again(parent, healthy, tmp_path):
    others = healthy[8:13]
    child = child_run(parent, others, tmp_path / "child")
    before = (tmp_path / "child" / "weights.pt").read_bytes()
    assert child_run(parent, others, tmp_path / "child").points == child.points
    for run, out in ((parent, parent.folder), (child, tmp_path / "child"), (child, parent.folder)):
        with pytest.raises(InputError, match="holds another run, which would be lost"):
            child_run(run, others, out)
    assert (tmp_path / "child" / "weights.pt").read_bytes() == before
    assert "parent" not in load_run(parent.folder, "cpu").history


def test_from_raw_scans_on_the_command_line(parent, healthy, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for case in healthy[8:13]:
        shutil.copyfile(case.image, tmp_path / "in" / case.image.name)
    told = ["--run", parent.folder, "--input", tmp_path / "in", "--out", tmp_path / "child"]
    assert command("adapt", "--how", "calibration", *told) == 0
    assert "calibrated on 5 healthy scans, 0 left out. In healthy scans" in capsys.readouterr().out
    assert load_run(tmp_path / "child", "cpu").history["parent"]["run"] == "run"

    (tmp_path / "one").mkdir()  # scans of the first command count too
    shutil.copyfile(healthy[13].image, tmp_path / "one" / healthy[13].image.name)
    told[3] = tmp_path / "one"
    assert command("adapt", "--how", "calibration", *told) == 0
    assert "calibrated on 6 healthy scans" in capsys.readouterr().out


def test_place_and_count_are_looked_at_before_any_scan_is_prepared(
    parent, healthy, tmp_path, capsys, monkeypatch
):
    def prepared(*_, **__):
        raise AssertionError("a scan was prepared")

    monkeypatch.setattr("pipelines.cohort.preprocess.preprocess_cohort", prepared)
    (tmp_path / "in").mkdir()
    for case in healthy[8:12]:
        shutil.copyfile(case.image, tmp_path / "in" / case.image.name)
    told = ["--run", parent.folder, "--input", tmp_path / "in", "--out"]
    before = sorted(path.name for path in parent.folder.iterdir())
    for how in ("calibration", "harmonise"):
        assert command("adapt", "--how", how, *told, parent.folder) == 2
        assert "holds another run, which would be lost" in capsys.readouterr().err
    assert sorted(path.name for path in parent.folder.iterdir()) == before

    assert command("adapt", "--how", "calibration", *told, tmp_path / "child") == 2
    assert "4 healthy scans; calibration needs at least 5" in capsys.readouterr().err
