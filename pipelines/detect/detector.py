"""From a prepared scan to its anomaly map on its own grid, its scan score and its mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation import postprocess
from evaluation.checks import bounding_box
from models.base import AnomalyModel
from pipelines.cohort.cases import Case, load
from pipelines.detect.config import Postprocess, RunConfig
from pipelines.detect.identity import map_digest
from pipelines.detect.inputs import harmonised, resize_volume, with_neighbours
from pipelines.detect.points import Point
from preprocessing import register
from preprocessing.files import atomic
from preprocessing.images import Grid, array_axis, save_nifti
from preprocessing.prepare import Prepared
from preprocessing.slices import turned
from preprocessing.warp import inverse

SLICES_AT_ONCE = 16
ATLAS_MM = (1.0, 1.0, 1.0)  # the atlas grid

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Images (B, C, ...), brains (B, 1, ...) and places (B,) to maps (B, 1, ...)."""


@dataclass(frozen=True)
class NativeMap:
    """A map on the scan's own grid (X, Y, Z): float32 >= 0, 0 outside `brain` (bool) and its rim.

    `scores` (X, Y, Z) is what scan and slice scores are taken from where it is not the map: the
    model's own score of each slice or of the volume, or the map's cluster enhancement.
    """

    map: np.ndarray
    brain: np.ndarray
    grid: Grid
    scores: np.ndarray | None = None

    @property
    def scored(self) -> np.ndarray:
        """What the scan and slice scores are taken from."""
        return self.map if self.scores is None else self.scores

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        return self.grid.spacing


@dataclass(frozen=True)
class Detector:
    """A trained model in eval mode with its config, on a device."""

    model: AnomalyModel
    config: RunConfig
    device: torch.device

    def map(self, prepared: Prepared) -> NativeMap:
        """The anomaly map of a prepared scan on the scan's own grid."""
        if self.config.calibration.score != "model":
            found = self.atlas_map(prepared.image, prepared.brain)
            return self._with_clusters(to_native(found, prepared))
        found, scores = self.map_and_scores(prepared.image, prepared.brain)
        atlas_from_scan = inverse(prepared.scan_from_atlas)
        native_scores = register.resample(
            scores, prepared.grid, prepared.home, atlas_from_scan, order=0
        )
        return replace(to_native(found, prepared), scores=native_scores)

    def map_case(self, case: Case, cache: Path | None = None, weights: str = "") -> NativeMap:
        """The map of a preprocessed case on its own grid; no raw scan is read.

        With `cache`, a folder, the map is stored there as `<id>_map.nii.gz`. It is read back while
        `weights` (a digest), the scan and the settings that shape the map are the same: then no
        network runs.
        """
        if not cache:
            return self.map(load(case))
        key = map_digest(weights, self.config, case.read_sidecar()["fingerprint"])
        stored = self._read_stored(case, cache, key)
        if stored:
            return stored
        native = self.map(load(case))
        self._store(native, case, cache, key)
        return native

    def atlas_map(self, image: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Anomaly map (X, Y, Z) in atlas space of an image (X, Y, Z[, C]) and its brain.

        Slice by slice or at once, median filtered, without the rim of the brain.
        """
        raw = slicewise(self.model.anomaly_map, self.config, image, brain, self.device)
        return filtered(raw, brain, self.config.postprocess)

    def reconstruction(self, image: np.ndarray, brain: np.ndarray) -> np.ndarray | None:
        """Pseudo-healthy volume (X, Y, Z) of the first channel, 0 outside the brain.

        None for a model that reconstructs nothing.
        """

        def network(x: Tensor, mask: Tensor, z: Tensor) -> Tensor:
            return self.model.reconstruct(x) * mask

        try:
            return slicewise(network, self.config, image, brain, self.device) * brain
        except NotImplementedError:
            return None

    def map_and_scores(self, image: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`atlas_map`, and the model's own scores at each voxel of the brain, 0 elsewhere.

        A score is of a slice, or of the volume. One pass through the network where a model gets
        both from one. Patches: the mean of their scores in the brain.
        """
        if self.config.patch_size:
            return self.atlas_map(image, brain), self._patch_scores(image, brain) * brain
        scores = np.zeros(brain.shape, np.float32)
        slices = turned(scores, self.config.plane)  # what is written here stands in the scores

        def network(x: Tensor, mask: Tensor, z: Tensor) -> Tensor:
            found, score = self.model.map_and_score(x, mask, z)
            places = z.cpu().numpy() if x.dim() == 4 else slice(None)
            slices[:, :, places] = score.float().cpu().numpy()
            return found

        raw = slicewise(network, self.config, image, brain, self.device)
        return filtered(raw, brain, self.config.postprocess), scores * brain

    def _patch_scores(self, image: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Of each slice or of the volume the mean score of its patches in the brain (X, Y, Z)."""
        assert self.config.patch_size
        scores = np.zeros(brain.shape, np.float32)
        slices = turned(scores, self.config.plane)

        def patch_score(x: Tensor, mask: Tensor, z: Tensor) -> Tensor:
            return _everywhere(self.model.score(x, mask, z), mask)

        network = _by_patches(patch_score, self.config.patch_size)
        for indices, x, mask, z in network_batches(self.config, image, brain, self.device):
            summed = (network(x, mask, z) * mask).flatten(1).sum(1)
            score = summed / mask.flatten(1).sum(1).clamp(min=1)
            slices[:, :, indices] = score.float().cpu().numpy()
        return scores

    def _with_clusters(self, native: NativeMap) -> NativeMap:
        """A native map with its cluster enhancement, where the config scores scans by that."""
        if self.config.calibration.score != "cluster":
            return native
        enhanced = postprocess.cluster_enhanced(native.map, native.spacing)
        return replace(native, scores=enhanced)

    def _read_stored(self, case: Case, cache: Path, key: str) -> NativeMap | None:
        """The stored map of a case; None where there is none or it is another's."""
        path = cache / f"{case.id}_map.nii.gz"
        if not path.is_file():
            return None
        file = nib.Nifti1Image.from_filename(path)
        if file.header["descrip"].item().decode() != key:
            return None
        prepared = load(case, image=False)
        by_model = self.config.calibration.score == "model"
        native = NativeMap(
            map=np.asarray(file.dataobj, np.float32),
            brain=_native_brain(prepared),
            grid=prepared.home,
            scores=np.load(cache / f"{case.id}_score.npy") if by_model else None,
        )
        return self._with_clusters(native)

    def _store(self, native: NativeMap, case: Case, cache: Path, key: str) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        if self.config.calibration.score == "model":
            with (
                atomic(cache / f"{case.id}_score.npy") as temporary,
                open(temporary, "wb") as handle,
            ):
                np.save(handle, native.scored)
        file = nib.Nifti1Image(native.map, native.grid.affine)
        file.header["descrip"] = key
        save_nifti(file, cache / f"{case.id}_map.nii.gz")


def slicewise(
    network: Network,
    config: RunConfig,
    image: np.ndarray,
    brain: np.ndarray,
    device: torch.device,
) -> np.ndarray:
    """Apply a network to every slice with brain, or to the volume; come back to (X, Y, Z).

    Slices are those of the run's plane, at the resolution that the network sees.
    """
    volumes = len(config.image_size) == 3
    result = np.zeros(brain.shape, np.float32)
    slices = turned(result, config.plane)  # what is written here stands in the result
    shape = brain.shape if volumes else slices.shape[:2]
    mode = "trilinear" if volumes else "bilinear"
    if config.patch_size:
        network = _by_patches(network, config.patch_size)

    for indices, x, mask, z in network_batches(config, image, brain, device):
        small = network(x, mask, z).float()
        full = F.interpolate(small, shape, mode=mode, align_corners=False)[:, 0]
        slices[:, :, indices] = (full[0] if volumes else full.permute(1, 2, 0)).cpu().numpy()
    return result


def _everywhere(values: Tensor, mask: Tensor) -> Tensor:
    """One value per sample (B,) at every place of its mask, (B, 1, ...)."""
    return values.view(-1, *[1] * (mask.dim() - 1)) * torch.ones_like(mask)


def _by_patches(network: Network, patch_size: tuple[int, ...]) -> Network:
    """The network on overlapping patches (MONAI).

    Answers are averaged with a weight that falls towards the edges of a patch.
    """
    from monai.inferers import sliding_window_inference  # slow to load

    def whole(x: Tensor, mask: Tensor, z: Tensor) -> Tensor:
        stacked = torch.cat([x, mask, _everywhere(z.to(x), mask)], 1)

        def patch(part: Tensor) -> Tensor:
            places = part[:, -1].flatten(1)[:, 0].long()
            return network(part[:, : x.shape[1]], part[:, -2:-1], places)

        return torch.as_tensor(
            sliding_window_inference(stacked, patch_size, 16, patch, overlap=0.5, mode="gaussian")
        )

    return whole


def network_batches(
    config: RunConfig, image: np.ndarray, brain: np.ndarray, device: torch.device
) -> Iterator[tuple[np.ndarray, Tensor, Tensor, Tensor]]:
    """Slices of the run's plane with brain, or the volume, as network input, without gradients.

    Gives indices along the plane, images, brains and places. Here alone a scan's intensities are
    harmonised, so that whatever the network makes of a scan is of the same image.
    """
    if config.harmonise:
        image = harmonised(image, config.harmonise)
    if len(config.image_size) == 3:
        small, mask = resize_volume(image, brain, config.image_size)
        place = torch.zeros(1, dtype=torch.long, device=device)
        with torch.inference_mode():
            yield np.arange(brain.shape[2]), small.to(device), mask.to(device), place
        return

    image = turned(image, config.plane)
    brain = turned(brain, config.plane)
    indices = np.flatnonzero(brain.any((0, 1)))
    slices = with_neighbours(image, indices, config.around)
    small, mask = resize_volume(slices, brain[:, :, indices], config.image_size)
    with torch.inference_mode():
        for i in range(0, len(indices), SLICES_AT_ONCE):
            part = slice(i, i + SLICES_AT_ONCE)
            places = torch.as_tensor(indices[part], device=device)
            yield indices[part], small[part].to(device), mask[part].to(device), places


def filtered(raw: np.ndarray, brain: np.ndarray, config: Postprocess) -> np.ndarray:
    """Median filter, then zero outside the brain and in its rim; atlas voxels of 1 mm."""
    # Around the brain a voxel at least: else the rim would not begin at the sides of the box.
    box = bounding_box(brain, margin=max(config.median, 1))
    result = np.zeros_like(raw)
    if box is not None:
        inside = postprocess.erode_rim(brain[box], ATLAS_MM, config.rim_mm)
        threads = torch.get_num_threads()
        result[box] = postprocess.smooth(raw[box], config.median, inside, threads)
    return result


def to_native(values: np.ndarray, prepared: Prepared) -> NativeMap:
    """Carry a map (linear) and the brain (nearest neighbour) from the atlas to the scan's grid."""
    atlas_from_scan = inverse(prepared.scan_from_atlas)
    brain = _native_brain(prepared)
    native = register.resample(values, prepared.grid, prepared.home, atlas_from_scan)
    inside = np.where(brain, np.maximum(native, 0), 0).astype(np.float32)
    return NativeMap(inside, brain, prepared.home)


def _native_brain(prepared: Prepared) -> np.ndarray:
    atlas_from_scan = inverse(prepared.scan_from_atlas)
    return register.carry_mask(prepared.brain, prepared.grid, prepared.home, atlas_from_scan)


def scan_score(native: NativeMap, fraction: float) -> float:
    """Mean of the highest `fraction` of the scored values inside the brain; 0 without a brain."""
    return top_mean(native.scored[native.brain], fraction)


def slice_scores(native: NativeMap, fraction: float, context: float = 0.0) -> dict[int, float]:
    """The scan score's rule for each axial slice of the scan's own grid that shows brain, by index.

    `context` times the scan score is added to each.
    """
    whole = context * scan_score(native, fraction) if context else 0.0
    axis = array_axis(native.grid.affine, 2)
    scored = np.moveaxis(native.scored, axis, 0)
    brains = np.moveaxis(native.brain, axis, 0)
    scores: dict[int, float] = {}
    for i, (values, brain) in enumerate(zip(scored, brains, strict=True)):
        if brain.any():
            scores[i] = whole + top_mean(values[brain], fraction)
    return scores


def top_mean(values: np.ndarray, fraction: float) -> float:
    """Mean of the highest `fraction` of the values, at least one of them; 0 for none."""
    if values.size == 0:
        return 0.0
    count = max(1, round(fraction * values.size))
    return float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float64))


def cut(native: NativeMap, point: Point, config: Postprocess) -> np.ndarray:
    """What a native map marks (bool) at an operating point.

    Threshold, closing, components of the smallest volume on; then those alone that are strong
    enough, where the point has a level for that.
    """
    marked = postprocess.binarise(
        native.map,
        native.brain,
        native.spacing,
        point.voxel,
        config.closing_mm,
        config.min_volume_mm3,
    )
    return only_strong(native, marked, point)


def only_strong(native: NativeMap, marked: np.ndarray, point: Point) -> np.ndarray:
    """The components of `marked` (bool) that are strong enough, where the point has a level."""
    if point.component is None:
        return marked
    found = strengths(native, marked, point)
    return postprocess.keep_strong(marked, found, point.component)


def strengths(native: NativeMap, marked: np.ndarray, point: Point) -> np.ndarray:
    """The strength of each component of `marked` (bool) by the rule of a point, (N,)."""
    return postprocess.strengths(marked, native.map, native.spacing, point.voxel, point.strength)
