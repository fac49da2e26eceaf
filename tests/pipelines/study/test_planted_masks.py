"""Ways to cut a map, ranked by the Dice of planted lesions that is counted by hand."""

import numpy as np
import pytest

from evaluation.metrics import dice
from evaluation.postprocess import binarise, cluster_enhanced
from pipelines.detect.config import Postprocess
from pipelines.study.planted_masks import Marks, PlantedMasks

SHAPE = (24, 20, 16)
BRAIN = np.ones(SHAPE, bool)
PLAIN = Postprocess(median=0, rim_mm=0, closing_mm=0, min_volume_mm3=0)


def scan(lesion_value):
    """A map with a false spot of two voxels at 4, a haze at 1 and, if any, a block as lesion."""
    found = np.zeros(SHAPE)
    found[2, 2, 2:4] = 4.0
    found[15:20, 3:8, 3:8] = 1.0
    lesion = np.zeros(SHAPE, bool)
    if lesion_value:
        lesion[8:12, 10:14, 6:10] = True
        found[8:12, 10:14, 6:10] = lesion_value
    return found, lesion


def planted(lesion_value, thresholds):
    masks = PlantedMasks(thresholds, PLAIN)
    for value in (0, lesion_value):
        found, lesion = scan(value)
        masks.add(found, BRAIN, lesion, cluster_enhanced(found, (1, 1, 1)))
    return {(row["strength"], row["outline"]): row for row in masks.figures(0.5)}


def test_a_high_lesion_is_found_by_its_peak_and_a_broad_one_by_its_mass():
    high = planted(6.0, {0.9: 0.5, 0.99: 2.0})
    assert high["peak", 0.99]["dice"] == 1.0  # the false spot is not stronger than in the healthy
    broad = planted(3.0, {0.99: 2.0})
    assert broad["peak", 0.99] == {"strength": "peak", "outline": 0.99, "dice": 0.0, "found": 0.0}
    assert broad["mass", 0.99]["dice"] == 1.0 and broad["mass", 0.99]["found"] == 1.0


def test_dice_is_that_of_the_mask_that_the_level_leaves():
    """Without a level that removes anything it is the Dice of the whole mask."""
    found, lesion = scan(3.0)
    found[7, 10:14, 6:10] = 3.0  # marked beside the lesion
    masks = PlantedMasks({0.9: 0.5}, PLAIN)
    masks.add(np.zeros(SHAPE), BRAIN, np.zeros(SHAPE, bool), np.zeros(SHAPE))
    masks.add(found, BRAIN, lesion, cluster_enhanced(found, (1, 1, 1)))
    marked = binarise(found, BRAIN, (1, 1, 1), 0.5)
    for row in masks.figures(0.1):
        assert row["dice"] == pytest.approx(dice(marked, lesion))


def test_dice_of_kept_components_by_hand():
    marks = Marks(np.array([1.0, 5.0]), np.array([10, 6]), np.array([0, 4]), 8)
    assert marks.dice(0.5) == pytest.approx(2 * 4 / (16 + 8))
    assert marks.dice(1.0) == pytest.approx(2 * 4 / (6 + 8))
    assert marks.dice(5.0) == 0
