"""Which outline and which strength give the best masks of planted lesions, without labels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from skimage.measure import label

from evaluation.checks import bounding_box
from evaluation.metrics import share
from evaluation.postprocess import Strength, binarise, strengths
from evaluation.thresholds import healthy_level
from pipelines.detect.config import Postprocess
from pipelines.detect.detector import ATLAS_MM

OUTLINES = (0.98, 0.99, 0.995, 0.998, 0.999)  # quantiles of healthy voxels
STRENGTHS: tuple[Strength, ...] = get_args(Strength)


@dataclass(frozen=True)
class Marks:
    """The components of one scan at one outline: strengths, voxels, voxels on the lesion (N,)."""

    strength: np.ndarray
    voxels: np.ndarray
    on_lesion: np.ndarray
    lesion: int

    def dice(self, level: float) -> float:
        """Dice of the components stronger than `level` with the lesion."""
        kept = self.strength > level
        both = int(self.voxels[kept].sum()) + self.lesion
        return share(2 * float(self.on_lesion[kept].sum()), both)


@dataclass
class PlantedMasks:
    """The components of healthy scans and of the same scans with a lesion, per way to cut a map.

    A way is a strength and an outline. `thresholds` are the outlines' values by quantile.
    """

    thresholds: dict[float, float]
    postprocess: Postprocess
    healthy: dict[tuple[Strength, float], list[Marks]] = field(
        default_factory=lambda: defaultdict(list)
    )
    planted: dict[tuple[Strength, float], list[Marks]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(
        self, found: np.ndarray, brain: np.ndarray, lesion: np.ndarray, enhanced: np.ndarray
    ) -> None:
        """Count a map in atlas space and its cluster enhancement; without lesion it is healthy."""
        group = self.planted if lesion.any() else self.healthy
        closing = self.postprocess.closing_mm
        smallest = self.postprocess.min_volume_mm3
        for outline, low in self.thresholds.items():
            marked = binarise(found, brain, ATLAS_MM, low, closing, smallest)
            voxels, on_lesion = _sizes(marked, lesion)
            for kind in STRENGTHS:
                values = enhanced if kind == "cluster" else found
                rule: Strength = "mass" if kind == "mass" else "peak"
                strong = strengths(marked, values, ATLAS_MM, low, rule)
                marks = Marks(strong, voxels, on_lesion, int(lesion.sum()))
                group[kind, outline].append(marks)

    def figures(self, false_alarm: float) -> list[dict[str, Any]]:
        """Per way mean Dice and the share of lesions found at the level of point "finding".

        Found: Dice above 0. The best Dice comes first.
        """
        rows: list[dict[str, Any]] = []
        for (kind, outline), scans in self.planted.items():
            strongest = [m.strength.max(initial=0.0) for m in self.healthy[kind, outline]]
            level = healthy_level(np.array(strongest), false_alarm).value
            dice = np.array([marks.dice(level) for marks in scans])
            rows.append(
                {
                    "strength": kind,
                    "outline": outline,
                    "dice": float(dice.mean()),
                    "found": float((dice > 0).mean()),
                }
            )
        return sorted(rows, key=lambda row: -row["dice"])


def _sizes(marked: np.ndarray, lesion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each component, and those that lie on the lesion, (N,) each."""
    box = bounding_box(marked)
    if box is None:
        return np.zeros(0, int), np.zeros(0, int)
    labels = label(marked[box], connectivity=3)
    count = int(labels.max()) + 1
    voxels = np.bincount(labels.ravel(), minlength=count)[1:]
    on_lesion = np.bincount(labels[lesion[box]], minlength=count)[1:]
    return voxels, on_lesion
