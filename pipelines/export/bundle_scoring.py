"""Scores prepared scans with an exported detector: anomaly map and mask in the space of the atlas.

This file is `scripts/scoring.py` of a MONAI bundle. It needs torch, NumPy and nibabel alone. Arrays
are RAS+ (X, Y, Z) on the atlas grid of 1 mm, so a voxel is a millimetre and a mm³.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BRAIN = "_desc-brain_mask.nii.gz"
MEDIAN_VOXELS = 50_000  # filtered at a time: 25 MB for 5 x 5 x 5
ROUNDING = 1e-6  # relative slack of sizes
NEAR = 1e-4  # relative slack of distances from the rim


class Network(nn.Module):
    """The exported detector, on the CPU: images, brains and places to anomaly maps (B, 1, ...).

    Args: path of the TorchScript file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.traced = torch.jit.load(str(path), map_location="cpu")

    def forward(
        self, image: Tensor, brain: Tensor | None = None, place: Tensor | None = None
    ) -> Tensor:
        """Return the maps of slices image (B, C, H, W) or volumes (B, C, X, Y, Z) in [0, 1].

        Args:
            image: what lies outside the brain is 0.
            brain: (B, 1, ...) 0 or 1; None: where a channel is above 0.
            place: index of each slice in the atlas (B,) int64; None: 0, as for volumes.
        """
        if brain is None:
            brain = (image.amax(1, keepdim=True) > 0).to(image)
        if place is None:
            place = torch.zeros(len(image), dtype=torch.long)
        found = torch.zeros_like(brain)
        for i in torch.nonzero(brain.flatten(1).any(1)).flatten().tolist():
            part = slice(i, i + 1)  # it was traced with one sample that has brain
            found[part] = self.traced(image[part], brain[part], place[part])
        return found


@dataclass(frozen=True)
class Scorer:
    """From a prepared scan to its anomaly map and its mask.

    image_size: what the network sees; three numbers: whole scans.
    grid: shape and affine (4, 4) of the atlas.
    axes: of a volume, in the order that puts that of the slices last.
    around: offsets of the slices that follow as channels.
    median: voxels along each side of the median filter; rim_mm of the brain's edge are left out.
    voxel, component: levels that a voxel, and the strength of a component, must exceed.
    strength: of a component: its "peak", or its "mass" above `voxel` in ml.
    closing_mm: radius; min_volume_mm3 of a component.
    """

    network: nn.Module
    image_size: Sequence[int]
    grid: dict[str, Any]
    voxel: float
    component: float | None = None
    strength: str = "peak"
    axes: Sequence[int] = (0, 1, 2)
    around: Sequence[int] = ()
    median: int = 5
    rim_mm: float = 3.0
    closing_mm: float = 2.0
    min_volume_mm3: float = 100.0

    def map(self, image: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Anomaly map (X, Y, Z) float32 >= 0 of an image (X, Y, Z[, C]) and its brain (bool)."""
        channels = image.reshape(*brain.shape, -1)
        with torch.inference_mode():
            raw = self._volume(channels, brain) if self._whole else self._slices(channels, brain)
        return smoothed(raw, without_rim(brain, self.rim_mm), self.median)

    def mask(self, anomaly_map: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """What the map marks (bool): components that are large and strong enough."""
        marked = closed(brain & (anomaly_map > self.voxel), self.closing_mm) & brain
        voxels = np.argwhere(marked)
        labels = components(voxels, brain.shape)
        values = anomaly_map[marked]
        keep = np.bincount(labels) >= self.min_volume_mm3 * (1 - ROUNDING)
        if self.component is not None and len(voxels):
            keep &= self._strengths(labels, values) > self.component
        marked[tuple(voxels[~keep[labels]].T)] = False
        return marked

    @property
    def _whole(self) -> bool:
        return len(self.image_size) == 3

    def _volume(self, channels: np.ndarray, brain: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(channels).permute(3, 0, 1, 2)[None]
        found = self._through(image, torch.from_numpy(brain)[None, None], torch.zeros(1).long())
        return found[0, 0].numpy()

    def _slices(self, channels: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Every slice with brain through the network, and back in its place."""
        result = np.zeros(brain.shape, np.float32)
        shown = result.transpose(*self.axes)  # what is written here stands in the result
        image = channels.transpose(*self.axes, 3)
        inside = brain.transpose(*self.axes)
        for z in np.flatnonzero(inside.any((0, 1))):
            seen = [_slice(image, z + offset) for offset in (0, *self.around)]
            x = torch.from_numpy(np.concatenate(seen, -1)).permute(2, 0, 1)[None]
            of_slice = torch.from_numpy(inside[:, :, z].copy())[None, None]
            shown[:, :, z] = self._through(x, of_slice, torch.tensor([z]))[0, 0].numpy()
        return result

    def _through(self, image: Tensor, brain: Tensor, place: Tensor) -> Tensor:
        """Resize, apply the network, and resize back."""
        size = tuple(self.image_size)
        inside = F.interpolate(brain.float(), size, mode="nearest-exact")
        small = F.interpolate(image.float(), size, mode="area") * inside
        mode = "trilinear" if self._whole else "bilinear"
        found = self.network(small, inside, place).float()
        return F.interpolate(found, image.shape[2:], mode=mode, align_corners=False)

    def _strengths(self, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
        if self.strength == "mass":
            above = np.maximum(values.astype(float) - self.voxel, 0)
            return np.bincount(labels, above) / 1000  # ml
        highest = np.full(labels.max() + 1, -np.inf)
        np.maximum.at(highest, labels, values)
        return highest


def _slice(image: np.ndarray, index: int) -> np.ndarray:
    """A slice (H, W, C); 0 beyond the volume."""
    if not 0 <= index < image.shape[2]:
        return np.zeros_like(image[:, :, 0])
    return image[:, :, index]


def without_rim(brain: np.ndarray, rim_mm: float) -> np.ndarray:
    """The brain farther than `rim_mm` from what lies outside it; the array border is inside."""
    if rim_mm == 0:
        return brain
    return brain & ~grown(~brain, rim_mm + NEAR * max(rim_mm, 1))


def closed(marked: np.ndarray, radius: float) -> np.ndarray:
    """Closing by a ball of `radius` mm, with room around it."""
    radius *= 1 + ROUNDING
    room = int(radius) + 1
    wide = grown(np.pad(marked, room), radius)
    inner = (slice(room, -room),) * 3
    return ~grown(~wide, radius)[inner]


def grown(mask: np.ndarray, radius: float) -> np.ndarray:
    """Voxels (bool) at most `radius` mm away from the mask."""
    reach = int(radius)
    padded = np.pad(mask, reach)
    result = np.zeros(mask.shape, bool)
    for offset in itertools.product(range(-reach, reach + 1), repeat=3):
        if sum(step * step for step in offset) <= radius * radius:
            starts = [reach + step for step in offset]
            result |= padded[
                tuple(slice(s, s + n) for s, n in zip(starts, mask.shape, strict=True))
            ]
    return result


def smoothed(values: np.ndarray, inside: np.ndarray, size: int) -> np.ndarray:
    """Median of size x size x size voxels at the voxels `inside`, 0 elsewhere."""
    result = np.where(inside, values, 0).astype(np.float32)
    if size <= 1:
        return result
    padded = np.pad(values, size // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size,) * 3)
    voxels = np.argwhere(inside)
    half = size**3 // 2
    for start in range(0, len(voxels), MEDIAN_VOXELS):
        at = tuple(voxels[start : start + MEDIAN_VOXELS].T)
        result[at] = np.partition(windows[at].reshape(-1, size**3), half, axis=1)[:, half]
    return result


def components(voxels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The 26-connected component of each marked voxel (N, 3): labels (N,) from 0 on."""
    number = np.full([n + 2 for n in shape], -1)
    number[tuple(voxels.T + 1)] = np.arange(len(voxels))
    pairs = []
    for offset in list(itertools.product((-1, 0, 1), repeat=3))[:13]:  # the other half mirrors it
        other = number[tuple((voxels + offset + 1).T)]
        near = np.flatnonzero(other >= 0)
        pairs.append(np.stack([near, other[near]]))
    first, second = np.concatenate(pairs, 1)

    labels = np.arange(len(voxels))
    while (labels[first] != labels[second]).any():
        low = np.minimum(labels[first], labels[second])
        np.minimum.at(labels, labels[first], low)
        np.minimum.at(labels, labels[second], low)
        while (labels != labels[labels]).any():
            labels = labels[labels]
    return np.unique(labels, return_inverse=True)[1]


def find_scans(folder: str, sequences: Sequence[str]) -> list[dict[str, Any]]:
    """Brain and images, one per sequence, of each prepared scan below a folder."""
    found: list[dict[str, Any]] = []
    for brain in sorted(Path(folder).rglob(f"*{BRAIN}")):
        stem = brain.name.removesuffix(BRAIN)
        images = [brain.with_name(f"{stem}_desc-preproc_{name}.nii.gz") for name in sequences]
        found.append({"stem": stem, "brain": brain, "images": images})
    if not found:
        raise FileNotFoundError(
            f"{folder}: holds no prepared scan, such as sub-01_space-...{BRAIN}"
        )
    return found


def read_scan(scan: dict[str, Any], grid: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Image (X, Y, Z, C) float32 and brain (X, Y, Z) bool; ValueError for another grid."""
    files = [nib.Nifti1Image.from_filename(path) for path in (scan["brain"], *scan["images"])]
    for file in files:
        same_shape = tuple(file.shape) == tuple(grid["shape"])
        if not same_shape or not np.allclose(file.affine, grid["affine"], atol=1e-3):
            raise ValueError(
                f"{file.get_filename()}: not on the atlas grid of this bundle, "
                f"{grid['shape']} voxels; prepare the scan as docs/README.md says."
            )
    brain, *images = (np.asarray(file.dataobj, np.float32) for file in files)
    return np.stack(images, -1), brain > 0


def score_scans(scorer: Scorer, scans: Sequence[dict[str, Any]], out: str) -> list[Path]:
    """Write map and mask of each prepared scan to a folder; gives the files."""
    Path(out).mkdir(parents=True, exist_ok=True)
    written = []
    for scan in scans:
        image, brain = read_scan(scan, scorer.grid)
        found = scorer.map(image, brain)
        marked = scorer.mask(found, brain).astype(np.uint8)
        for name, data in (("map", found), ("mask", marked)):
            path = Path(out) / f"{scan['stem']}_{name}.nii.gz"
            nib.save(nib.Nifti1Image(data, np.array(scorer.grid["affine"])), path)
            written.append(path)
        print(f"{scan['stem']}: {marked.sum() / 1000:.1f} ml marked, map up to {found.max():.3g}")
    return written
