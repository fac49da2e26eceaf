"""Lobes at points that textbooks place, the lobe of most voxels, and depth against scipy."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from evaluation.postprocess import components
from pipelines.detect.places import NAMES, depths_of, lobes_at, lobes_of, place_of

MNI = [  # coordinates of MNI space as the literature reports them
    ((-40, 40, 10), "frontal lobe"),  # middle frontal gyrus
    ((0, 20, 50), "frontal lobe"),  # supplementary motor area
    ((30, -62, 50), "parietal lobe"),  # superior parietal lobule
    ((-58, -20, -15), "temporal lobe"),  # middle temporal gyrus
    ((25, -15, -20), "temporal lobe"),  # hippocampus
    ((10, -88, 4), "occipital lobe"),  # calcarine cortex
    ((-38, 6, 0), "insula"),
    ((12, -18, 8), "deep brain"),  # thalamus
    ((-26, 4, 0), "deep brain"),  # putamen
    ((0, -28, -35), "brainstem"),  # pons
    ((25, -65, -40), "cerebellum"),
    ((-45, -60, -40), "cerebellum"),
    ((0, -60, -20), "cerebellum"),  # vermis
    ((30, 30, 20), "frontal lobe"),  # white matter
    ((-28, -85, 8), "occipital lobe"),  # white matter
]


@pytest.mark.parametrize(("mm", "lobe"), MNI)
def test_a_point_of_the_literature_lies_in_its_lobe(mm, lobe):
    assert NAMES[lobes_at(np.array([mm], float))[0]] == lobe


def test_a_component_is_named_after_where_most_of_it_lies():
    """Two components on an oblique, flipped grid of 2 x 3 x 4 mm; one has its peak elsewhere."""
    turn = nib.quaternions.angle_axis2mat(0.3, [1, 2, 3])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2.0, 3, 4])
    affine[:3, 3] = -affine[:3, :3] @ [45, 40, 30]
    shape = (90, 80, 60)
    voxels = np.argwhere(np.ones(shape, bool))
    mm = (voxels @ affine[:3, :3].T + affine[:3, 3]).reshape(*shape, 3)
    cerebellum = np.linalg.norm(mm - [20, -65, -40], axis=-1) < 9
    frontal = np.linalg.norm(mm - [-35, 40, 15], axis=-1) < 12
    values = (cerebellum * 1.0 + frontal * 2.0).astype(np.float32)
    into_insula = np.linalg.norm(mm - [-36, 10, 0], axis=-1) < 5
    bridge = (np.abs(mm[..., 0] + 35) < 4) & (np.abs(mm[..., 1] - 25) < 18)
    bridge &= np.abs(mm[..., 2] - mm[..., 1] / 2) < 6
    values[into_insula] = 3.0
    marked = cerebellum | frontal | into_insula | bridge
    found = components(marked, values, affine)
    assert len(found) == 2 and found[0]["peak"] == 3.0
    assert lobes_of(marked, found, affine) == ["frontal lobe", "cerebellum"]
    assert lobes_of(marked, found[::-1], affine) == ["cerebellum", "frontal lobe"]
    assert lobes_of(np.zeros(shape, bool), [], affine) == []


def test_depth_is_the_distance_from_the_outside_in_mm():
    shape = (40, 50, 20)
    spacing = (1.5, 2.0, 4.0)
    x, y, z = np.indices(shape)
    brain = ((x - 20) / 15.0) ** 2 + ((y - 24) / 20.0) ** 2 + ((z - 9) / 8.0) ** 2 < 1
    voxels = np.argwhere(brain)[::37]
    affine = np.diag([*spacing, 1.0])
    affine[:3, :3] = nib.quaternions.angle_axis2mat(1.0, [3, 1, 2]) @ affine[:3, :3]
    expected = distance_transform_edt(brain, sampling=spacing)[tuple(voxels.T)]
    np.testing.assert_allclose(depths_of(brain, affine, voxels), expected, atol=1e-9)
    whole = np.ones(shape, bool)
    assert depths_of(whole, affine, voxels).max() == 0  # nothing is outside


def test_a_place_in_words():
    assert place_of("frontal lobe", (-30, 0, 0), 12.4) == "left frontal lobe, 12 mm deep"
    assert place_of("insula", (30, 0, 0), 3) == "right insula, 3 mm deep"
    assert place_of("brainstem", (4, -30, -30), 20) == "midline brainstem, 20 mm deep"
