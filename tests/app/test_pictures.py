"""Slices as pictures: which side is where, and what the three planes show."""

import nibabel as nib
import numpy as np
import pytest

from app.pictures import (
    AXIAL,
    CORONAL,
    MARK_COLOUR,
    SAGITTAL,
    Layers,
    array_axis,
    key_slices,
    plane_slice,
    three_planes,
)
from tests.app.heads import AFFINE, LESIONS, SHAPE, THRESHOLD, head, head_map, head_mask

TURNS = ([[0, 1], [1, 1], [2, 1]], [[1, -1], [2, 1], [0, -1]], [[2, -1], [0, 1], [1, -1]])
NOTHING = {"components": [], "maximum": None}
# of an array whose first axis runs to the left: where a voxel is seen, (row, column)
SEEN = {
    AXIAL: lambda x, y, z: (SHAPE[1] - 1 - y, x),
    CORONAL: lambda x, y, z: (SHAPE[2] - 1 - z, x),
    SAGITTAL: lambda x, y, z: (SHAPE[2] - 1 - z, SHAPE[1] - 1 - y),
}


@pytest.mark.parametrize("world", SEEN)
@pytest.mark.parametrize("turn", TURNS)
def test_a_voxel_is_seen_where_its_place_in_the_world_says(turn, world):
    """The patient's right on the left, the nose up or to the left, whichever way the array runs."""
    centre = LESIONS[0][0]
    turned = nib.Nifti1Image(head(), AFFINE).as_reoriented(np.array(turn))
    voxel = np.linalg.inv(turned.affine) @ AFFINE @ [*centre, 1]
    seen = plane_slice(turned, world, round(voxel[array_axis(turned.affine, world)]))
    rows, columns = np.nonzero(seen == 70)
    assert (rows.mean(), columns.mean()) == pytest.approx(SEEN[world](*centre), abs=0.5)


def layers(marked):
    images = (head(), head_map(), marked.astype(np.uint8))
    return Layers(*(nib.Nifti1Image(one, AFFINE) for one in images), "ct", THRESHOLD)


def mark_pixels(picture):
    return (np.abs(np.asarray(picture).astype(int) - MARK_COLOUR).max(axis=2) < 10).sum()


def test_the_three_planes_show_the_marks_at_the_strongest_peak():
    peak = {"peak_voxel": list(LESIONS[0][0]), "peak_mm": [0, 0, 0], "place": "left"}
    report = {"components": [peak]}
    assert mark_pixels(three_planes(layers(head_mask()), report)) > 200
    assert mark_pixels(three_planes(layers(np.zeros(SHAPE)), report)) == 0
    away = {"components": [{**peak, "peak_voxel": [5, 5, 5]}]}
    assert mark_pixels(three_planes(layers(head_mask()), away)) == 0


def test_a_scan_without_findings_has_a_first_picture_too():
    assert three_planes(layers(np.zeros(SHAPE)), NOTHING).height > 300
    assert key_slices(layers(np.zeros(SHAPE)), NOTHING) == []
