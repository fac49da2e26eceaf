"""What adaptation does, measured: levels and millilitres by hand, and rows that stand."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import adaptation
from benchmarks.adaptation import Asked, draws_of, figures, level_of, look, measure, summary
from pipelines.detect.points import Point
from pipelines.detect.run import load_run
from pipelines.study.choose import PlantedScan, Planting
from preprocessing.files import read_json
from tests.conftest import case_of

BRAIN = np.zeros((12, 13, 14), bool)
BRAIN[1:-1, 1:-1, 1:-1] = True
KINDS = ("bright", "dark")


def planted(cases, number, planting):
    """A scan with a false spot of two voxels at 0.5, and two lesions of ten voxels each."""
    image = np.zeros(BRAIN.shape, np.float32)
    image[3, 3, 3:5] = 0.5
    yield PlantedScan("", image, BRAIN, np.zeros_like(BRAIN))
    for kind, strength in zip(KINDS, (0.3 + 0.01 * number, 0.8), strict=True):
        lesion = np.zeros_like(BRAIN)
        lesion[6, 1:11, 6] = True
        shown = image.copy()
        shown[6, 1:3, 6] = strength  # a fifth of it: more than a tenth, so it is found
        yield PlantedScan(kind, shown, BRAIN, lesion)


class Identity:
    """A detector whose map is the image."""

    def __init__(self, config):
        self.config = config

    def atlas_map(self, image, brain):
        return image


@pytest.fixture
def run(tiny_run, monkeypatch):
    """A run whose map is the image, cut at 0.4 with nothing closed or left out."""
    monkeypatch.setattr(adaptation, "planted_of", planted)
    run = load_run(tiny_run, "cpu")
    post = run.config.postprocess.model_copy(update={"closing_mm": 0.0, "min_volume_mm3": 0.0})
    config = run.config.model_copy(update={"postprocess": post})
    points = run.points | {"quantile": Point(point="quantile", voxel=0.4)}
    return replace(run, detector=Identity(config), points=points)


@pytest.fixture
def asked(tmp_path):
    planting = Planting(KINDS, (1, 2))
    return Asked(tmp_path, ["harmonise", "calibration"], [1, 2, 9], 2, 2, (0.5, 0.75), planting)


def test_the_level_is_the_highest_that_finds_enough():
    strengths = [0.4, 0.1, 0.3, 0.2]
    for share, wanted in ((0.25, 0.4), (0.5, 0.3), (0.51, 0.2), (1, 0.1)):
        level = level_of(strengths, share)
        assert level == pytest.approx(wanted, abs=1e-9)
        assert np.mean(np.array(strengths) > level) >= share


def test_figures_by_hand(run, asked):
    seen = [look(run, [], number, asked) for number in (0, 1)]
    assert np.allclose([scan.strengths for scan in seen], [[0.3, 0.8], [0.31, 0.8]])
    assert [scan.found for scan in seen] == [[False, True]] * 2
    found = figures(run, seen, asked.sensitivities)
    half, most = found["equal"]
    # three of four lesions pass just below 0.31, and so does the false spot of two voxels
    assert most["threshold"] == pytest.approx(0.31) and most["sensitivity"] == 0.75
    assert most["ml"] == pytest.approx(0.002) and most["findings"] == 1
    assert half["threshold"] == pytest.approx(0.8) and half["ml"] == half["findings"] == 0
    assert found["own"] == {"ml": pytest.approx(0.002), "findings": 1.0, "found": 0.5}
    assert found["lesions"] == 4


def test_with_a_table_of_splits_its_test_scans_are_the_target(tmp_path, monkeypatch):
    cases = [
        case_of(name, tmp_path, label=label, split=split)
        for name, label, split in (
            ("a", "healthy", "train"),
            ("b", "healthy", "test"),
            ("c", "abnormal", "test"),
        )
    ]
    monkeypatch.setattr(adaptation, "read_cases", lambda data, splits: cases)
    assert [case.id for case in adaptation.healthy_cases(tmp_path)] == ["a", "b"]
    assert [case.id for case in adaptation.healthy_cases(tmp_path, tmp_path / "s.tsv")] == ["b"]


def test_rows_stand_and_no_scan_adapts_and_is_tested(run, asked, tmp_path, monkeypatch, capsys):
    cases = [case_of(f"s{i}", tmp_path, label="healthy", fingerprint=str(i)) for i in range(4)]
    monkeypatch.setattr(adaptation, "healthy_cases", lambda *given: cases)
    monkeypatch.setattr(adaptation, "demand_way", lambda *given: None)
    made = []

    def child(parent, given, out, how, source):
        made.append((how, [case.id for case in given]))
        return parent

    monkeypatch.setattr(adaptation, "adapt", child)
    for draw in draws_of(4, asked):
        assert len(draw.adapting) == draw.count and len(draw.held_out) == 2
        assert not set(draw.adapting) & set(draw.held_out)

    out = tmp_path / "adaptation.json"
    measure("tiny", run, asked, out)
    said = capsys.readouterr().out
    assert "k = 9: not measured, as 4 scans" in said and "calibration, k = 2: not" in said
    first = read_json(out)
    assert [(how, len(given)) for how, given in made] == [("harmonise", k) for k in (1, 1, 2, 2)]
    entries = first["runs"]["tiny"]["summary"]
    assert [(e["k"], e["how"], e["draws"]) for e in entries] == [
        (1, "harmonise", 2),
        (1, "none", 2),
        (2, "harmonise", 2),
        (2, "none", 2),
    ]
    assert entries == summary(first["runs"]["tiny"]["rows"])
    assert entries[0]["equal"][1]["ml"] == pytest.approx(0.002)
    for row in first["runs"]["tiny"]["rows"]:
        assert {"how", "k", "draw", "held_out", "equal", "own"} <= set(row)

    measure("tiny", run, asked, out)
    assert len(made) == 4 and read_json(out) == first  # nothing is measured twice
    measure("tiny", run, replace(asked, sensitivities=(0.5,)), out)
    assert len(made) == 8  # other lesions or levels are
    measure("other", run, asked, out)
    assert set(read_json(out)["runs"]) == {"tiny", "other"}
