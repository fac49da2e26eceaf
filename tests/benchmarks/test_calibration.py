"""Calibration on healthy scans: levels against the library's own, and figures in the docs."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from benchmarks.calibration import Healthy, calibrated, rounded
from pipelines.config import ROOT
from pipelines.detect.detector import NativeMap
from pipelines.detect.run import load_run
from pipelines.training.calibrate import calibrate
from preprocessing.files import read_json
from preprocessing.images import Grid
from tests.conftest import case_of


class FromMemory:
    """A detector whose map of a case is given."""

    def __init__(self, config, maps):
        self.config = config
        self.maps = maps

    def map_case(self, case, cache=None, weights=""):
        return self.maps[case.id]


@pytest.fixture
def site(tiny_run, tmp_path):
    """A run, and five noise maps on voxels of 2 mm whose brightness rises."""
    run = load_run(tiny_run, "cpu")
    rng = np.random.default_rng(0)
    grid = Grid((30, 30, 30), np.diag([2.0, 2, 2, 1]))
    maps = {}
    for i in range(5):
        values = np.abs(gaussian_filter(rng.normal(size=grid.shape), 1)).astype(np.float32)
        brain = np.ones(grid.shape, bool)
        maps[f"s{i}"] = NativeMap(values * (10 + i) * brain, brain, grid)
    return run, maps


def test_the_level_is_that_of_the_library_at_a_rounded_outline(site, tmp_path):
    run, maps = site
    scans = [Healthy(name, native, run) for name, native in maps.items()]
    at = calibrated(run, scans)
    cases = [case_of(name, tmp_path) for name in maps]
    points, _, _ = calibrate([(FromMemory(run.config, maps), cases)])
    expected = points["finding"]
    assert at.voxel == pytest.approx(expected.voxel, abs=0.04)
    assert at.component == pytest.approx(expected.component, rel=1e-6)
    assert at.promise == expected.promise
    ml, findings = scans[-1].marked(at.model_copy(update={"component": 0.0}))
    strong, volumes = scans[-1].components(at.voxel)
    assert findings == len(strong) > 0 and ml == pytest.approx(volumes.sum())


def test_outlines_are_rounded_to_the_step():
    assert [rounded(v) for v in (3.74, 3.774, 3.776)] == [3.75, 3.75, 3.8]


RESULTS = ROOT / "docs" / "results" / "calibration.json"


def test_the_docs_say_what_was_measured():
    found = read_json(RESULTS)
    page = (ROOT / "docs" / "results" / "ds011" / "remarks.md").read_text()
    site = found["another_scanner"]
    for row in site["scans"]:
        cells = [f"{row[key]:.1f}" for key in ("before_ml", "after_ml")]
        counts = [str(row[key]) for key in ("before_findings", "after_findings")]
        assert f"| {row['id']} | {cells[0]} | {cells[1]} | {counts[0]} | {counts[1]} |" in page
    assert f"| mean | {site['before_ml']:.1f} | {site['after_ml']:.1f} |" in page
    kept = found["promise"]
    assert f"{kept['with_finding']:.1%}" in page and f"{kept['before_with_finding']:.0%}" in page
