"""Where the slices of a DICOM series lie, told from headers alone: gaps, tilt, and a proof.

All positions are LPS millimetres, as DICOM has them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocessing.quality import Check

SAME_PLACE = 0.01  # mm: two slices nearer than this are at one place
SAME_DIRECTION = 5e-3  # cosines that differ by less are of one direction (0.3 degrees)
UNEQUAL = 1.05  # the largest distance between slices over the smallest one
TILTED = 0.5  # degrees; over a head of 150 mm it shears by one pixel
OFF_LINE = 1.0  # mm: slices further from one line are no stack
SHIFTED = 0.25  # of a slice or pixel, that a converted volume may lie beside its headers


@dataclass(frozen=True)
class Stack:
    """Slices of one orientation from low to high.

    order: of the planes given.
    distances: (N,) mm along the normal, rising.
    normal: (3,) of the slices.
    first: (3,) position of the lowest slice.
    shear: (3,) mm that a slice moves within its plane, per mm along the normal.
    off_line: mm that a slice lies at most beside the line through all.
    """

    order: np.ndarray
    distances: np.ndarray
    normal: np.ndarray
    first: np.ndarray
    shear: np.ndarray
    off_line: float

    @classmethod
    def of(cls, positions: np.ndarray, orientation: np.ndarray) -> Stack:
        """The stack of planes at `positions` (N, 3), of one `orientation` (6,)."""
        normal = np.cross(orientation[:3], orientation[3:])
        normal = normal / np.linalg.norm(normal)
        distances = positions @ normal
        order = np.argsort(distances, kind="stable")
        distances = distances[order]
        within = positions[order] - distances[:, None] * normal
        along = distances - distances.mean()
        moved = within - within.mean(0)
        shear = along @ moved / max(float(along @ along), 1e-9)
        beside = np.linalg.norm(moved - along[:, None] * shear, axis=1)
        first = positions[order[0]]
        return cls(order, distances, normal, first, shear, float(beside.max()))

    @property
    def gaps(self) -> np.ndarray:
        """mm between neighbours."""
        return np.diff(self.distances)

    @property
    def step(self) -> float:
        """The usual distance between neighbours in mm."""
        return float(np.median(self.gaps)) if len(self.distances) > 1 else 0.0

    @property
    def tilt(self) -> float:
        """Degrees between the line of the slices and their normal."""
        return _degrees(float(np.linalg.norm(self.shear)))

    @property
    def even_slices(self) -> int:
        """How many slices fill the stack at its smallest distance."""
        length = float(self.distances[-1] - self.distances[0])
        return int(length / max(float(self.gaps.min(initial=np.inf)), SAME_PLACE)) + 1

    @property
    def missing(self) -> tuple[int, float]:
        """Slices missing inside, and the largest distance over the smallest one elsewhere.

        A distance of 2, 3, ... steps is a gap. Where more than a quarter are such, the slices were
        taken at several distances, and none is missing.
        """
        multiples = np.maximum(np.rint(self.gaps / self.step), 1)
        long = (multiples > 1) & (abs(self.gaps / self.step - multiples) < 0.2)
        if long.sum() * 4 > len(long):
            long[:] = False
        rest = self.gaps[~long]
        return int((multiples[long] - 1).sum()), float(rest.max() / rest.min())


def _degrees(slope: float) -> float:
    return float(np.rad2deg(np.arctan(slope)))


def directions(orientations: np.ndarray) -> list[int]:
    """How many planes (N, 6) there are of each direction, the most frequent first."""
    groups: list[tuple[np.ndarray, int]] = []
    for plane in orientations:
        for i, (known, count) in enumerate(groups):
            if np.allclose(plane, known, atol=SAME_DIRECTION):
                groups[i] = (known, count + 1)
                break
        else:
            groups.append((plane, 1))
    return sorted((count for _, count in groups), reverse=True)


def places(distances: np.ndarray) -> np.ndarray:
    """The number (N,) of the place of each slice; rising `distances` at one place share one."""
    return np.concatenate([[0], np.cumsum(np.diff(distances) > SAME_PLACE)])


def stack_checks(stack: Stack) -> list[Check]:
    """What a reader must know of a volume: slices that were invented, and tilt taken out."""
    missing, ratio = stack.missing
    return [
        none_expected("missing slices (interpolated)", missing),
        Check("distance between slices (largest / smallest)", ratio, high=UNEQUAL, hard=False),
        Check("gantry tilt (corrected)", stack.tilt, high=TILTED, unit="degrees", hard=False),
    ]


def none_expected(what: str, count: int) -> Check:
    """A count of slices that flags the scan where it is not 0."""
    return Check(what, count, high=0, unit="slices", hard=False)


def misplaced(
    stack: Stack, name: str, shape: Sequence[int], affine: np.ndarray, pixel: float
) -> str:
    """Why a converted volume is not where the headers put it; "" where it is.

    `stack` is upright. `name` is the file's, which says what was corrected (`_Eq`). `affine` is to
    RAS+ mm, `pixel` is in mm.
    """
    indices = np.array(list(itertools.product(*((0, n - 1) for n in shape[:3]))))
    corners = (indices @ affine[:3, :3].T + affine[:3, 3]) * (-1, -1, 1)  # to LPS
    ends = corners @ stack.normal
    first, last = stack.distances[[0, -1]]
    off = max(abs(ends.min() - first), abs(ends.max() - last))
    if off > SHIFTED * stack.step:
        return (
            f"the volume reaches from {ends.min():.1f} to {ends.max():.1f} mm along its slices, "
            f"the headers from {first:.1f} to {last:.1f} mm"
        )
    if "_Eq" not in name:
        n = len(stack.distances)
        uneven = abs(stack.distances - np.linspace(first, last, n)).max()
        if shape[2] != n:
            return f"the volume has {shape[2]} slices, the headers {n}"
        if uneven > SHIFTED * stack.step:
            return f"slices up to {uneven:.1f} mm from equal distances, which is not corrected"
    beside = np.linalg.norm(corners - stack.first, axis=1).min()
    if beside > SHIFTED * max(pixel, stack.step):
        return f"the volume begins {beside:.1f} mm from where the headers put it"
    return ""
