"""Healthy scans as another scanner or an unlucky minute would have made them, in graded severity.

Each shift takes a head as it came in and gives another one. Nothing is a lesion: what a detector
marks beyond its marks in the unshifted scan is false. Severity is 1 (mild), 2 or 3 (severe).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter1d

SEVERITIES = (1, 2, 3)


@dataclass(frozen=True)
class Head:
    """A scan: voxels (X, Y, Z) float32 as stored, affine (4x4, RAS+ mm), brain (bool).

    `centre` is a place between the ventricles in mm of the scan. `is_ct`: values are HU.
    """

    voxels: np.ndarray
    affine: np.ndarray
    brain: np.ndarray
    centre: np.ndarray
    is_ct: bool

    @property
    def spacing(self) -> np.ndarray:
        """Voxel sides in mm (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def base(self) -> float:
        """The value of air: of CT -1000 HU, or the least of a scan that was clipped above that."""
        return max(-1000.0, float(self.voxels.min())) if self.is_ct else 0.0

    @property
    def range(self) -> float:
        """The brain's range: 98th percentile less the 2nd."""
        low, high = np.percentile(self.voxels[self.brain], (2, 98))
        return float(high - low)

    @property
    def is_stripped(self) -> bool:
        """Whether nothing but the brain is left: an empty voxel has no noise."""
        outside = self.voxels[~self.brain]
        return bool(outside.size) and float((outside == self.base).mean()) > 0.95

    @property
    def through_slices(self) -> int:
        """The axis of the array that runs from feet to head most."""
        return int(np.abs(self.affine[2, :3]).argmax())


Shift = Callable[[Head, int, np.random.Generator], Head]


def with_values(head: Head, values: np.ndarray) -> Head:
    """The head with other values, none below air's; what was cut away from a brain stays empty."""
    if head.is_stripped:
        values = np.where(head.voxels == head.base, head.base, values)
    return replace(head, voxels=np.maximum(values, head.base).astype(np.float32))


def gamma(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """Grey values raised to a power of 1.2, 1.6 or 2.2 of the brain's 99th percentile."""
    top = np.percentile(head.voxels[head.brain], 99) - head.base
    share = np.maximum(head.voxels - head.base, 0) / top
    return with_values(head, head.base + top * share ** (1.2, 1.6, 2.2)[severity - 1])


def gain(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """All values times 1.05, 1.2 or 1.5: for MR no change at all, for CT a wrong calibration."""
    return with_values(head, head.voxels * (1.05, 1.2, 1.5)[severity - 1])


def window(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """CT as exported for a screen: nothing beyond a window of 400, 150 or 80 HU around 40."""
    if not head.is_ct:
        return head
    half = (200.0, 75.0, 40.0)[severity - 1]
    return with_values(head, np.clip(head.voxels, 40 - half, 40 + half))


def contrast(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """Differences from the brain's median shrunk to 0.8, 0.6 or 0.4 inside the brain."""
    middle = np.median(head.voxels[head.brain])
    share = (0.8, 0.6, 0.4)[severity - 1]
    values = head.voxels.copy()
    values[head.brain] = middle + share * (values[head.brain] - middle)
    return with_values(head, values)


def bias_field(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """A smooth factor of second order, in the brain up to 0.15, 0.35 or 0.6 from 1 at most."""
    places = [np.linspace(-1, 1, n) for n in head.voxels.shape]
    x, y, z = np.meshgrid(*places, indexing="ij", sparse=True)
    a = rng.normal(size=6)
    field = a[0] * x + a[1] * y + a[2] * z + a[3] * x * y + a[4] * y * z + a[5] * (z * z - 0.5)
    most = (0.15, 0.35, 0.6)[severity - 1]
    field = np.clip(field / np.abs(field[head.brain]).max() * most, -most, most)
    return with_values(head, head.base + (head.voxels - head.base) * (1 + field))


def noise(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """Rician noise (MR), Gaussian (CT), of sd 0.04, 0.1 or 0.2 of the brain's range."""
    sd = head.range * (0.04, 0.1, 0.2)[severity - 1]
    real = head.voxels + rng.normal(0, sd, head.voxels.shape)
    if head.is_ct:
        return with_values(head, real)
    return with_values(head, np.hypot(real, rng.normal(0, sd, head.voxels.shape)))


def blur(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """A Gaussian of sd 0.8, 1.5 or 2.5 mm."""
    return with_values(
        head, gaussian_filter(head.voxels, (0.8, 1.5, 2.5)[severity - 1] / head.spacing)
    )


def thick_slices(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """Slices of 3, 5 or 8 mm: means over that height, and no voxels between them."""
    axis = head.through_slices
    step = max(1, round((3.0, 5.0, 8.0)[severity - 1] / head.spacing[axis]))
    if step == 1:
        return head
    keep = np.arange(step // 2, head.voxels.shape[axis], step)
    affine = head.affine.copy()
    affine[:3, 3] += affine[:3, axis] * keep[0]
    affine[:3, axis] *= step
    mean = uniform_filter1d(head.voxels, step, axis=axis, mode="nearest")
    voxels, brain = (np.take(array, keep, axis) for array in (mean, head.brain))
    return replace(head, voxels=voxels, brain=brain, affine=affine)


def ghosting(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """A copy, half the field of view away along the second axis, at 0.05, 0.15 or 0.3."""
    share = (0.05, 0.15, 0.3)[severity - 1]
    signal = head.voxels - head.base
    ghost = np.roll(signal, signal.shape[1] // 2, axis=1)
    return with_values(head, head.base + (signal + share * ghost) / (1 + share))


def motion(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """A part of each quarter of k-space taken after the head had moved along the second axis, by
    1, 3 or 6 mm; which part, and whether to or fro, by lot."""
    moved = (1.0, 3.0, 6.0)[severity - 1] / head.spacing[1]
    count = head.voxels.shape[1]
    frequency = np.fft.fftfreq(count)
    place = np.zeros(count)
    lines_each = count // (24, 16, 10)[severity - 1]
    for start in np.arange(4) * count // 4 + rng.integers(0, count // 4, 4):
        place[np.arange(start, start + lines_each) % count] = rng.choice((-moved, moved))
    place[np.abs(frequency) < 0.02] = 0  # the middle of k-space tells where the head is
    lines = np.fft.fft(head.voxels - head.base, axis=1)
    lines *= np.exp(-2j * np.pi * frequency * place)[None, :, None]
    return with_values(head, head.base + np.abs(np.fft.ifft(lines, axis=1)))


def missing_slices(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """Every slice of 0.03, 0.1 or 0.25 of them, drawn by lot, is empty."""
    axis = head.through_slices
    count = head.voxels.shape[axis]
    lost = rng.permutation(count)[: max(1, round((0.03, 0.1, 0.25)[severity - 1] * count))]
    values = np.moveaxis(head.voxels.copy(), axis, 0)
    values[lost] = head.base
    return with_values(head, np.moveaxis(values, 0, axis))


def wrong_orientation(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """A header that says otherwise: left for right, front for back, feet for head."""
    affine = head.affine.copy()
    affine[:3] = np.diag(1.0 - 2.0 * (np.arange(3) == severity - 1)) @ affine[:3]
    return replace(head, affine=affine)


def inverted(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """Bright for dark inside the brain, in parts of 0.3, 0.6 or 1: as of another sequence."""
    share = (0.3, 0.6, 1.0)[severity - 1]
    values = head.voxels.copy()
    low, high = np.percentile(values[head.brain], (2, 98))
    own = values[head.brain]
    values[head.brain] = (1 - share) * own + share * np.maximum(low + high - own, head.base)
    return with_values(head, values)


def kernel(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """A sharp kernel: edges enhanced by 0.5, 1 or 2 times what a Gaussian of 1 mm takes away."""
    smooth = gaussian_filter(head.voxels, 1.0 / head.spacing)
    return with_values(head, head.voxels + (0.5, 1.0, 2.0)[severity - 1] * (head.voxels - smooth))


def vessels(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """The brightest thin structures of the brain (1 % of it) brightened by 0.3, 0.7 or 1.2 of its
    range, as by a contrast agent."""
    fine = gaussian_filter(head.voxels, 0.8 / head.spacing)
    fine -= gaussian_filter(head.voxels, 3.0 / head.spacing)
    bright = head.brain & (fine > np.percentile(fine[head.brain], 99))
    values = head.voxels.copy()
    values[bright] += (0.3, 0.7, 1.2)[severity - 1] * head.range
    return with_values(head, values)


def ventricles(head: Head, severity: int, rng: np.random.Generator) -> Head:
    """Everything within 45 mm of the ventricles pushed outwards by up to 1.5, 3 or 5 mm: age."""
    reach = 45.0
    most = (1.5, 3.0, 5.0)[severity - 1]
    voxel_from_mm = np.linalg.inv(head.affine)
    index = np.indices(head.voxels.shape, dtype=np.float32)
    mm = np.tensordot(head.affine[:3, :3], index, 1) + head.affine[:3, 3, None, None, None]
    away = mm - np.asarray(head.centre, float)[:, None, None, None]
    distance = np.linalg.norm(away, axis=0)
    # farthest between centre and border, nothing at both: no fold, as its slope stays below 1
    push = most * np.sin(np.pi * np.clip(distance / reach, 0, 1))
    source = mm - away / np.maximum(distance, 1e-6) * push
    places = np.tensordot(voxel_from_mm[:3, :3], source, 1) + voxel_from_mm[:3, 3, None, None, None]
    moved = map_coordinates(head.voxels, places, order=1, mode="nearest")
    return with_values(head, moved)


SHIFTS: dict[str, Shift] = {
    "gamma": gamma,
    "gain": gain,
    "CT window": window,
    "contrast": contrast,
    "bias field": bias_field,
    "noise": noise,
    "blur": blur,
    "thick slices": thick_slices,
    "ghosting": ghosting,
    "motion": motion,
    "missing slices": missing_slices,
    "wrong orientation": wrong_orientation,
    "inverted contrast": inverted,
    "sharp kernel": kernel,
    "bright vessels": vessels,
    "large ventricles": ventricles,
}
VOLUME_ONLY = ("thick slices", "missing slices", "wrong orientation", "large ventricles")
LEFT_OUT = {  # by modality; of MR what changes nothing of it
    "ct": (),
    "chest_ct": (),
    "picture": ("CT window", *VOLUME_ONLY),
}
LEFT_OUT_OF_MR = ("gain", "CT window")


def shifts_of(modality: str) -> list[str]:
    """The names of the shifts of scans of a modality: all that change them."""
    left_out = LEFT_OUT.get(modality, LEFT_OUT_OF_MR)
    return [name for name in SHIFTS if name not in left_out]
