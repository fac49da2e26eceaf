"""From a prepared scan to its anomaly map on its own grid, its scan score and its mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch.nn import functional as F

from evaluation import postprocess
from evaluation.checks import bounding_box
from models.base import AnomalyModel
from pipelines.cohort.cases import load_channels
from pipelines.detect.config import Postprocess, RunConfig
from pipelines.detect.inputs import resize_volume, with_neighbours
from preprocessing import register
from preprocessing.files import atomic, read_json
from preprocessing.images import array_axis, save_nifti, voxel_sizes
from preprocessing.slices import turned

SLICES_AT_ONCE = 16


@dataclass(frozen=True)
class NativeMap:
    """A map on the scan's own grid (X, Y, Z): float32 >= 0, zero outside `brain` (bool) and in its rim.

    `scores` (X, Y, Z) is what the scan and slice scores are taken from where it is not the map: the model's own score of each slice or of
    the volume, or the map's cluster enhancement.
    """

    map: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    scores: np.ndarray | None = None

    @property
    def scored(self) -> np.ndarray:
        """What the scan and slice scores are taken from."""
        return self.map if self.scores is None else self.scores

    @property
    def spacing(self) -> tuple[float, float, float]:
        return voxel_sizes(self.affine)


def atlas_map(
    model: AnomalyModel,
    config: RunConfig,
    image: np.ndarray,
    brain: np.ndarray,
    device: torch.device,
) -> np.ndarray:
    """Anomaly map (X, Y, Z) of a scan in atlas space (X, Y, Z[, C]), slice by slice or at once, filtered, without the rim of the brain."""
    return filtered(
        slicewise(model.anomaly_map, config, image, brain, device), brain, config.postprocess
    )


def reconstruction(
    model: AnomalyModel,
    config: RunConfig,
    image: np.ndarray,
    brain: np.ndarray,
    device: torch.device,
) -> np.ndarray | None:
    """Pseudo-healthy volume (X, Y, Z) of the first channel, 0 outside the brain; None for a model that reconstructs nothing."""
    try:
        return (
            slicewise(lambda x, mask, z: model.reconstruct(x) * mask, config, image, brain, device)
            * brain
        )
    except NotImplementedError:
        return None


def map_and_slice_volume(
    model: AnomalyModel,
    config: RunConfig,
    image: np.ndarray,
    brain: np.ndarray,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """`atlas_map`, and the model's own score of each slice or of the volume at every voxel of its brain (X, Y, Z), 0 elsewhere.

    One pass through the network where a model gets both from one. Patches: the mean of their scores in the brain.
    """
    result = np.zeros(brain.shape, np.float32)
    slices = turned(result, config.plane)

    def network(x: torch.Tensor, mask: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        found, score = model.map_and_score(x, mask, z)
        slices[:, :, z.cpu().numpy() if x.dim() == 4 else slice(None)] = score.float().cpu().numpy()
        return found

    def of_patches(x: torch.Tensor, mask: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return _everywhere(model.score(x, mask, z), mask)

    raw = slicewise(
        model.anomaly_map if config.patch_size else network, config, image, brain, device
    )
    if config.patch_size:
        for rows, x, mask, z in network_batches(config, image, brain, device):
            spread = _by_patches(of_patches, config.patch_size)(x, mask, z) * mask
            score = spread.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
            slices[:, :, rows] = score.float().cpu().numpy()
    return filtered(raw, brain, config.postprocess), result * brain


def slicewise(
    network: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    config: RunConfig,
    image: np.ndarray,
    brain: np.ndarray,
    device: torch.device,
) -> np.ndarray:
    """Apply a network to every slice with brain of the run's plane, or to the volume, at its resolution; come back to (X, Y, Z)."""
    volumes = len(config.image_size) == 3
    result = np.zeros(brain.shape, np.float32)
    slices = turned(result, config.plane)  # what is written here stands in the result
    shape, mode = (brain.shape, "trilinear") if volumes else (slices.shape[:2], "bilinear")
    if config.patch_size:
        network = _by_patches(network, config.patch_size)
    for rows, x, mask, z in network_batches(config, image, brain, device):
        full = F.interpolate(network(x, mask, z).float(), shape, mode=mode, align_corners=False)[
            :, 0
        ]
        slices[:, :, rows] = (full[0] if volumes else full.permute(1, 2, 0)).cpu().numpy()
    return result


def _everywhere(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One value per sample (B,) at every place of its mask, (B, 1, ...)."""
    return values.view(-1, *[1] * (mask.dim() - 1)) * torch.ones_like(mask)


def _by_patches(
    network: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    patch_size: tuple[int, ...],
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The network on overlapping patches, whose answers are averaged with a weight that falls towards their edges (MONAI)."""

    def whole(x: torch.Tensor, mask: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        stacked = torch.cat([x, mask, _everywhere(z.to(x), mask)], 1)

        def patch(part: torch.Tensor) -> torch.Tensor:
            return network(
                part[:, : x.shape[1]], part[:, -2:-1], part[:, -1].flatten(1)[:, 0].long()
            )

        return torch.as_tensor(
            sliding_window_inference(stacked, patch_size, 16, patch, overlap=0.5, mode="gaussian")
        )

    return whole


def network_batches(
    config: RunConfig, image: np.ndarray, brain: np.ndarray, device: torch.device
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Slices of the run's plane with brain, or the volume, as network input, without gradients: indices, images, masks and places."""
    if len(config.image_size) == 3:
        small, mask = resize_volume(image, brain, config.image_size)
        with torch.inference_mode():
            yield (
                np.arange(brain.shape[2]),
                small.to(device),
                mask.to(device),
                torch.zeros(1, dtype=torch.long, device=device),
            )
        return
    image, brain = turned(image, config.plane), turned(brain, config.plane)
    rows = np.flatnonzero(brain.any((0, 1)))
    small, mask = resize_volume(
        with_neighbours(image, rows, config.around), brain[:, :, rows], config.image_size
    )
    with torch.inference_mode():
        for i in range(0, len(rows), SLICES_AT_ONCE):
            part = slice(i, i + SLICES_AT_ONCE)
            yield (
                rows[part],
                small[part].to(device),
                mask[part].to(device),
                torch.as_tensor(rows[part], device=device),
            )


def filtered(raw: np.ndarray, brain: np.ndarray, settings: Postprocess) -> np.ndarray:
    """Median filter, then zero outside the brain and in its rim; atlas voxels of 1 mm."""
    box = bounding_box(brain, margin=settings.median)
    result = np.zeros_like(raw)
    if box is not None:
        inside = postprocess.erode_rim(brain[box], (1.0, 1.0, 1.0), settings.rim_mm)
        result[box] = postprocess.smooth(raw[box], settings.median, inside)
    return result


def to_native(
    values: np.ndarray,
    brain: np.ndarray,
    space: np.ndarray,
    world: np.ndarray,
    shape: tuple[int, ...],
    affine: np.ndarray,
) -> NativeMap:
    """Carry a map (linear) and brain mask (nearest neighbour) from the grid of `space` (4x4) to the scan's own."""
    back = np.linalg.inv(world)
    native_brain = register.carry_mask(brain, space, shape, affine, back)
    native = register.resample(values, space, shape, affine, back)
    return NativeMap(
        np.where(native_brain, np.maximum(native, 0), 0).astype(np.float32), native_brain, affine
    )


def native_map(
    model: AnomalyModel,
    config: RunConfig,
    image: np.ndarray,
    brain: np.ndarray,
    space: np.ndarray,
    world: np.ndarray,
    shape: tuple[int, ...],
    affine: np.ndarray,
    device: torch.device,
) -> NativeMap:
    """A prepared scan (image and brain on the grid of `space`) to its map on its own grid of `shape` and `affine`."""
    if config.calibration.score != "model":
        return with_scores(
            to_native(
                atlas_map(model, config, image, brain, device), brain, space, world, shape, affine
            ),
            config,
        )
    found, volume = map_and_slice_volume(model, config, image, brain, device)
    native = to_native(found, brain, space, world, shape, affine)
    return replace(
        native,
        scores=register.resample(volume, space, shape, affine, np.linalg.inv(world), order=0),
    )


def with_scores(native: NativeMap, config: RunConfig) -> NativeMap:
    """A native map with its cluster enhancement, where the config scores scans by that."""
    clusters = config.calibration.score == "cluster"
    return (
        replace(native, scores=postprocess.cluster_enhanced(native.map, native.spacing))
        if clusters
        else native
    )


def scan_score(native: NativeMap, fraction: float) -> float:
    """Mean of the highest `fraction` of the scored values inside the brain; 0 where there is no brain."""
    return top_mean(native.scored[native.brain], fraction)


def slice_scores(native: NativeMap, fraction: float, context: float = 0.0) -> dict[int, float]:
    """The scan score's rule for each axial slice of the scan's own grid that shows brain, plus `context` times the scan score, by index."""
    whole = context * scan_score(native, fraction) if context else 0.0
    axis = array_axis(native.affine, 2)
    maps, brains = (np.moveaxis(v, axis, 0) for v in (native.scored, native.brain))
    return {
        i: whole + top_mean(m[b], fraction)
        for i, (m, b) in enumerate(zip(maps, brains, strict=True))
        if b.any()
    }


def top_mean(values: np.ndarray, fraction: float) -> float:
    """Mean of the highest `fraction` of the values, at least one of them; 0 for none."""
    if values.size == 0:
        return 0.0
    count = max(1, round(fraction * values.size))
    return float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float64))


def cut(native: NativeMap, threshold: float, settings: Postprocess) -> np.ndarray:
    """Mask (bool) of a native map: threshold, closing, components under the smallest volume removed."""
    return postprocess.binarise(
        native.map,
        native.brain,
        native.spacing,
        threshold,
        settings.closing_mm,
        settings.min_volume_mm3,
    )


def cohort_maps(
    model: AnomalyModel,
    config: RunConfig,
    data: Path,
    row: dict[str, str],
    device: torch.device,
    cache: Path | None = None,
    weights: str = "",
) -> NativeMap:
    """Native map of a scan that `make preprocess` prepared (a row of its scans.tsv); no raw scan is read.

    With `cache`, a folder, the map is kept there as `<id>_map.nii.gz` and read back while `weights` (a digest), the scan
    and the settings that shape the map are the same: then no network runs.
    """
    side = read_json(data / row["sidecar"])
    brain_file = nib.Nifti1Image.from_filename(data / row["brain"])
    brain, space = np.asarray(brain_file.dataobj) > 0, brain_file.affine
    shape, affine, world = (
        tuple(side["native_shape"]),
        np.array(side["native_affine"]),
        np.array(side["world"]),
    )
    stored = cache / f"{row['id']}_map.nii.gz" if cache else None
    of_slices = cache / f"{row['id']}_score.npy" if cache else Path()
    shaping = f"{config.name} {config.model} {config.image_size} {config.postprocess.median} {config.postprocess.rim_mm}"
    shaping += f" {config.patch_size}" if config.patch_size else ""
    shaping += f" around {config.around}" if config.around else ""
    shaping += f" {config.plane}" if config.plane != "axial" else ""
    shaping += f" {config.reference}" if config.reference.active else ""
    shaping += " model" if config.calibration.score == "model" else ""
    key = sha256(f"{weights} {side['fingerprint']} {shaping}".encode()).hexdigest()
    if stored and stored.is_file():
        kept = nib.Nifti1Image.from_filename(stored)
        if kept.header["descrip"].item().decode() == key:
            inside = register.carry_mask(brain, space, shape, affine, np.linalg.inv(world))
            own = np.load(of_slices) if config.calibration.score == "model" else None
            return with_scores(
                NativeMap(np.asarray(kept.dataobj, np.float32), inside, affine, own), config
            )
    image = load_channels(data, row, side)
    native = native_map(model, config, image, brain, space, world, shape, affine, device)
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        if config.calibration.score == "model":
            with atomic(of_slices) as temporary, open(temporary, "wb") as handle:
                np.save(handle, native.scored)
        file = nib.Nifti1Image(native.map, affine)
        file.header["descrip"] = key
        save_nifti(file, stored)
    return native
