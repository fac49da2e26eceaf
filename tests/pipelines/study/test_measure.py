"""Voxels that the rule of MOOD counts and the voxel AP does not."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.metrics import VoxelHistogram
from evaluation.mood import pooled_pixel_ap
from pipelines.detect.detector import NativeMap
from pipelines.detect.points import Point
from pipelines.study.measure import _by_strength, elsewhere
from preprocessing.images import Grid

SHAPE = (4, 5, 6)


def native(seed):
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, bool)
    brain[1:3, 1:4, 1:5] = True
    values = (rng.random(SHAPE) * brain).astype(np.float32)
    return NativeMap(values, brain, Grid(SHAPE, np.eye(4)))


def case(label):
    return SimpleNamespace(label=label)


def test_every_voxel_of_known_truth_is_counted_once():
    lesions = np.zeros(SHAPE, bool)
    lesions[2:4, 2, 2] = True  # one in the brain, one outside
    ill = native(0)
    well = native(1)
    rest = elsewhere(case("abnormal"), ill, lesions)
    assert rest.counts.sum() == (~ill.brain).sum() - 1 and rest.counts[0, 0] == rest.counts.sum()
    healthy = elsewhere(case("healthy"), well, None)
    assert healthy.counts[0].sum() == well.map.size and healthy.counts[1].sum() == 0
    for label in ("abnormal", ""):
        assert elsewhere(case(label), well, None).counts.sum() == 0, "nobody knows its lesions"

    inside = VoxelHistogram()
    inside.update(ill.map[ill.brain], lesions[ill.brain])
    labels = np.concatenate([lesions.ravel(), np.zeros(well.map.size, bool)])
    scores = np.concatenate([ill.map.ravel(), well.map.ravel()])
    order = np.argsort(-scores, kind="stable")
    at = int(np.flatnonzero(labels[order])[0]) + 1  # rank of the lesion voxel that the map shows
    expected = (1 / at + 2 / labels.size) / 2
    assert pooled_pixel_ap(inside, rest + healthy, 1) == pytest.approx(expected, abs=2e-3)


def test_findings_are_ranked_by_strength_whatever_level_they_must_pass():
    """A strong and a weak finding, one lesion under each, and a third that nothing touches."""
    values = np.zeros((12, 8, 8), np.float32)
    values[1:3, 1:3, 1:3] = 5.0
    values[6:8, 1:3, 1:3] = 2.0
    values[6, 1, 1] = 3.0
    values[10:12, 5:7, 5:7] = 4.0  # false
    brain = np.ones(values.shape, bool)
    labels = np.zeros(values.shape, int)
    labels[1:3, 1:3, 1:3] = 1
    labels[6:8, 1:3, 1:4] = 2
    labels[11, 1, 1] = 3
    scan = NativeMap(values, brain, Grid(values.shape, np.eye(4)))
    at = Point(point="finding", voxel=1.0, component=4.5)
    lesions = [{"volume_ml": 0.008}, {"volume_ml": 0.012}, {"volume_ml": 0.001}]
    found = _by_strength(scan, values > 1, labels, at, lesions)
    assert [one["strength"] for one in found["lesions"]] == [5.0, 3.0, 0.0]
    assert [one["volume_ml"] for one in found["lesions"]] == [0.008, 0.012, 0.001]
    assert [(one["score"], one["true"]) for one in found["outlined"]] == [
        (5.0, True),
        (3.0, True),
        (4.0, False),
    ]
    by_mass = at.model_copy(update={"strength": "mass"})  # the integral above 1, in ml
    found = _by_strength(scan, values > 1, labels, by_mass, lesions)
    assert [one["score"] for one in found["outlined"]] == pytest.approx([0.032, 0.009, 0.024])
