"""Voxels that the rule of MOOD counts and the voxel AP does not."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.metrics import VoxelHistogram
from evaluation.mood import pooled_pixel_ap
from pipelines.detect.detector import NativeMap
from pipelines.study.measure import elsewhere
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
