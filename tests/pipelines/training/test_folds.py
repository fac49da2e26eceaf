"""Cross-calibration on pictures: each healthy scan is scored by the run that has not seen it."""

import json

import numpy as np
import pytest
import torch

from models.base import AnomalyModel
from models.parts.folded import Folded
from pipelines.cohort.cases import load, read_cases
from pipelines.config import ConfigError
from pipelines.detect.config import load_run_config
from pipelines.detect.detector import scan_score
from pipelines.detect.run import load_run
from pipelines.pages.data_set import made_text
from pipelines.study.results_file import Results
from pipelines.training.folds import train_run
from preprocessing.files import read_table, write_table
from tests.shared import run

pytestmark = pytest.mark.usefixtures("no_figures")

FOLDS = 4
SETTINGS = ["image_size=[48,48]", "loop.loader_workers=0", "postprocess.rim_mm=0"]
FOLDED = [f"calibration.folds={FOLDS}", "postprocess.min_volume_mm3=2"]


@pytest.fixture(scope="module")
def data(pictures):
    """The preprocessed pictures that all tests share."""
    return pictures / "heads"


class Fixed(AnomalyModel):
    """A map and scores that were given."""

    stages = ()

    def __init__(self, found):
        super().__init__()
        self.found = found

    def anomaly_map(self, x, mask, z=None):
        return self.found * mask


@pytest.fixture(scope="module")
def splits(data, tmp_path_factory):
    """All healthy pictures but three to train and validate on."""
    path = tmp_path_factory.mktemp("splits") / "splits.tsv"
    healthy = [case for case in read_cases(data) if case.label == "healthy"]
    rows = []
    splits_of = ["train"] * 9 + ["val"] * 3 + ["test"] * (len(healthy) - 12)
    for case, split in zip(healthy, splits_of, strict=True):
        rows.append({"id": case.id, "split": split})
    write_table(path, rows)
    return path


@pytest.fixture(scope="module")
def folded(data, splits, tmp_path_factory):
    """The folder of an atlas that was trained in folds."""
    out = tmp_path_factory.mktemp("folded") / "atlas"
    train_run(load_run_config("atlas", [*SETTINGS, *FOLDED]), data, out, splits)
    return out


def test_the_lowest_of_all_maps_and_scores():
    maps = [torch.rand(2, 1, 5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    model = Folded([Fixed(found) for found in maps])
    mask = torch.ones(2, 1, 5, 4)
    found = model.anomaly_map(mask, mask)
    np.testing.assert_array_equal(found, np.minimum.reduce([m.numpy() for m in maps]))
    means = np.array([m.numpy().mean((1, 2, 3)) for m in maps])
    np.testing.assert_allclose(model.score(mask, mask), means.min(0), rtol=1e-6)


def test_each_scan_calibrates_by_the_run_that_has_not_seen_it(data, splits, folded):
    cases = {case.id: case for case in read_cases(data, splits)}
    stored = {scan.id: scan for scan in load_run(folded, "cpu").reference.scans}
    assert set(stored) == {id for id, case in cases.items() if case.split != "test"}
    scored = {}
    for fold in range(FOLDS):
        own = load_run(folded / "folds" / str(fold), "cpu")
        seen = {*own.history["train_scans"], *own.history["val_scans"]}
        assert {*own.history["train_scans"]}.isdisjoint(own.history["val_scans"])
        for id in set(stored) - seen:
            native = own.detector.map(load(cases[id]))
            scored[id] = scan_score(native, own.config.calibration.score_fraction)
    assert scored == pytest.approx({id: scan.score for id, scan in stored.items()})


def test_the_subjects_of_a_group_are_never_parted(data, folded):
    subject = {case.id: case.subject for case in read_cases(data)}
    for fold in range(FOLDS):
        rows = read_table(folded / "folds" / f"{fold}.tsv")
        split_of = {}
        for row in rows:
            assert split_of.setdefault(subject[row["id"]], row["split"]) == row["split"]


def test_a_new_scan_gets_the_lowest_map_of_all_runs(data, splits, folded):
    case = next(case for case in read_cases(data, splits) if case.split == "test")
    whole = load_run(folded, "cpu").detector
    found = whole.atlas_map(load(case).image, load(case).brain)
    parts = []
    for fold in range(FOLDS):
        detector = load_run(folded / "folds" / str(fold), "cpu").detector
        raw = detector.model.anomaly_map
        assert type(detector.model).__name__ == "Atlas" and raw
        parts.append(detector.atlas_map(load(case).image, load(case).brain))
    assert (found <= np.minimum.reduce(parts) + 1e-6).all()  # the median filter comes afterwards
    assert found.max() > 0


def test_levels_and_promise_follow_from_all_healthy_scans(folded):
    loaded = load_run(folded, "cpu")
    point = loaded.point()
    strongest = sorted(scan.strongest for scan in loaded.reference.scans)
    assert len(strongest) == 12
    assert point.component == strongest[11]  # ceil(13 * 0.9) = 12
    sizes = []
    for fold in range(FOLDS):
        rows = read_table(folded / "folds" / f"{fold}.tsv")
        sizes.append(sum(row["split"] == "val" for row in rows))
    biggest = max(sizes)
    assert loaded.reference.left_out == biggest
    bound = biggest / (12 + biggest)
    assert (
        f"like the 12 that it was calibrated on, at most one in {int(1 / bound)}" in point.promise
    )
    assert loaded.point("finding=0.3").component == strongest[9]  # ceil(13 * 0.7) = 10
    stored = json.loads((folded / "threshold.json").read_text())
    assert stored["point"] == "finding" and stored["promise"] == point.promise
    assert stored["n_scans"] == 12


def test_a_finished_run_is_left_alone(data, splits, folded, caplog):
    before = (folded / "weights.pt").stat().st_mtime_ns
    caplog.set_level("INFO", "norma")
    train_run(load_run_config("atlas", [*SETTINGS, *FOLDED]), data, folded, splits)
    assert (folded / "weights.pt").stat().st_mtime_ns == before
    assert "nothing to do" in caplog.text


def test_an_ensemble_takes_the_members_of_its_own_fold(data, splits, folded):
    both = ["model.members=[atlas]", "image_size=[48,48]", "loop.loader_workers=0", *FOLDED]
    out = folded.parent / "ensemble"
    train_run(load_run_config("ensemble", both), data, out, splits)
    loaded = load_run(out, "cpu")
    for fold, part in enumerate(loaded.model.members):
        atlas = load_run(folded / "folds" / str(fold), "cpu").model
        torch.testing.assert_close(part.members[0].mean, atlas.mean)

    train_run(load_run_config("intensity", SETTINGS), data, folded.parent / "intensity", splits)
    alone = ["model.members=[intensity]", *both[1:]]
    with pytest.raises(Exception, match=r"not trained in as many folds"):
        train_run(load_run_config("ensemble", alone), data, folded.parent / "other", splits)


@pytest.mark.parametrize(
    ("model", "settings", "sentence"),
    [
        ("atlas", ["calibration.folds=2"], "leave too little to train on"),
        ("atlas", ["calibration.folds=40"], "healthy subjects to train and validate on"),
        ("atlas", ["calibration.folds=4", "loop.devices=2"], "one device"),
        ("densenet_supervised", ["calibration.folds=4"], "learns from labelled scans"),
    ],
)
def test_folds_that_cannot_be(data, splits, tmp_path, model, settings, sentence):
    if model == "densenet_supervised":
        splits = None
    with pytest.raises(ConfigError, match=sentence):
        train_run(load_run_config(model, settings), data, tmp_path / "run", splits)


def test_compare_with_folds_and_the_choice_inside_each_of_them(data, tmp_path):
    """The row "chosen" holds, run by run, the figures of the model that planted lesions chose."""
    arguments = ["--data", data, "--out", tmp_path, "--models", "zero intensity atlas"]
    arguments += ["--protocol", "kfold", "--folds", 3, "--repeats", 1, "--choose"]
    arguments += ["--kinds", "bright", "--volumes", "0.01,0.03"]
    arguments += [f"all.{setting}" for setting in SETTINGS]
    arguments += ["intensity.model.mode=value", "intensity.model.tail=bright"]
    assert run("compare", *arguments, "atlas.calibration.folds=3") == 0
    comparison = json.loads((tmp_path / "heads_comparison.json").read_text())
    runs = {entry["model"]: entry["runs"] for entry in comparison["models"]}
    assert list(runs) == ["zero", "intensity", "atlas", "chosen"]
    for number, chosen in enumerate(runs["chosen"]):
        ap = {}
        for model in ("zero", "intensity", "atlas"):
            path = tmp_path / model / f"repeat-0_fold-{number}" / "planted.json"
            ap[model] = json.loads(path.read_text())["voxel_ap"]
        assert chosen["chosen"] == max(ap, key=ap.get) != "zero"
        assert chosen["summary"] == runs[chosen["chosen"]][number]["summary"]
    names = [chosen["chosen"] for chosen in runs["chosen"]]
    stored = Results.read(tmp_path / "heads_results")
    assert [r.chosen for r in stored.summary.runs] == [None] * 9 + names
    first = max(set(names), key=names.count)
    told = f"{first} in {names.count(first)} run"
    assert told in made_text(stored) and told in (tmp_path / "heads_comparison.html").read_text()
